#pragma once

// Reads pieces of files into memory at the storage's speed and past the page cache, so that a model
// is never in memory twice.

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"

namespace packtrain {

struct DirectRead {
  uint32_t file = 0;  // index into the paths
  uint64_t offset = 0;
  uint64_t bytes = 0;
  std::byte* to = nullptr;
};

// Direct reads (O_DIRECT) by `threads` threads; files on filesystems that refuse them are read
// through the page cache, which is asked to forget them at once. Where target and file are as far
// into a 4 KiB block the storage writes straight to the target, elsewhere by way of a buffer: beside
// the targets it takes 8 MiB per thread. `progress` (may be empty) is called by the calling thread
// some times a second and at the end; when it returns false the reading ends with CANCELLED.
// Errors: NOT_FOUND or PERMISSION_DENIED for a file that cannot be opened, DATA_LOSS naming file,
// offset and cause for one that cannot be read or is too short.
absl::Status ReadDirect(const std::vector<std::string>& paths, std::vector<DirectRead> reads,
                        int threads,
                        const std::function<bool(uint64_t done, uint64_t total)>& progress);

}  // namespace packtrain

#pragma once

// Parses one GGUF file, or one piece of a split set, from bytes in memory. Private to this folder.

#include <cstddef>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/weights/gguf.h"

namespace packtrain {

// "[kind] path: field 'x': what"; DATA_LOSS.
absl::Status GgufError(std::string_view kind, std::string_view path, std::string_view field,
                       std::string_view what);

// Bytes from a file as they may stand in a message: escaped, and cut when long.
std::string Printable(std::string_view text);

struct GgufPiece {
  uint32_t version = 0;
  uint64_t alignment = 0;
  uint64_t data_offset = 0;
  std::vector<std::pair<std::string, GgufValue>> metadata;
  std::vector<GgufTensor> tensors;  // shard is 0
};

// The values of the result borrow from `bytes`; `path` is for messages only. Never allocates more
// than a small multiple of what the bytes hold, whatever they announce.
// Errors: DATA_LOSS, see GgufFile::Open.
absl::StatusOr<GgufPiece> ParseGgufPiece(std::span<const std::byte> bytes, std::string_view path);

}  // namespace packtrain

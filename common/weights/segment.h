#pragma once

// Weights in RAM: a sealed memfd with the tensors of one worker, in the file's own layout. The
// coordinator creates it before it starts the worker and keeps it open, so it outlives the worker:
// a replacement maps the finished segment and reads nothing from the disk. A seal against writing
// is what says "finished".
//
// Bytes: magic "PTSEGM01", u64 header bytes, u64 total bytes, then as (u32 length, bytes) strings
// the name of the layout ("gguf": tensors as in the file) and the model's identity, a u32 count and
// per tensor its name as such a string, u64 offset and u64 bytes; all little-endian. Tensors begin
// at multiples of 64, and as far into a page as in the file if that is such a multiple: the storage
// can then write straight into the segment.

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace packtrain {

class GgufFile;
struct GgufTensor;

struct SegmentLayout {
  struct Entry {
    const GgufTensor* tensor = nullptr;  // borrowed from the file
    uint64_t offset = 0;
  };
  std::vector<Entry> entries;
  std::string header;  // the segment's first bytes
  uint64_t bytes = 0;  // of the whole segment, a multiple of 2 MiB
};

// The same for the same file and tensors, in this and any other process.
SegmentLayout PlanSegment(const GgufFile& file, std::span<const GgufTensor* const> tensors);

// Unfilled segments: close-on-exec descriptors that the caller owns. Each is in huge pages if
// enough of them are reserved. Errors: RESOURCE_EXHAUSTED, with the numbers, if host and control
// group cannot hold all of them together.
absl::StatusOr<std::vector<int>> CreateSegments(std::span<const uint64_t> bytes);

struct SegmentFillOptions {
  int threads = 4;  // that read; each takes 8 MiB of buffer
  // Bytes done and in total; some times a second and at the end, from the calling thread. False
  // ends the filling.
  std::function<bool(uint64_t done, uint64_t total)> progress;
};

// A finished segment, mapped read-only with all its pages: using them costs no faults.
class Segment {
 public:
  // Fills the segment behind `fd` (borrowed) by parallel direct reads and seals it; if it is sealed
  // already, only maps it. Errors: FAILED_PRECONDITION if it holds something else or could still be
  // changed by others, DATA_LOSS if the file is shorter than its header says, CANCELLED by
  // `progress`, RESOURCE_EXHAUSTED.
  static absl::StatusOr<std::unique_ptr<Segment>> Open(int fd, const GgufFile& file,
                                                       const SegmentLayout& layout,
                                                       const SegmentFillOptions& options);
  ~Segment();
  // Whether `fd` is a segment that has been filled and sealed.
  static bool IsFinished(int fd);
  Segment(const Segment&) = delete;
  Segment& operator=(const Segment&) = delete;

  // Empty if the segment does not hold the tensor.
  std::span<const std::byte> Find(const std::string& name) const;
  bool was_filled() const { return was_filled_; }  // before Open
  // What it was filled into, "100 % huge"; "as they were" if somebody else filled it.
  const std::string& pages() const { return pages_; }

 private:
  Segment() = default;

  const std::byte* data_ = nullptr;
  uint64_t bytes_ = 0;
  bool was_filled_ = false;
  std::string pages_ = "as they were";
  absl::flat_hash_map<std::string, std::span<const std::byte>> tensors_;
};

}  // namespace packtrain

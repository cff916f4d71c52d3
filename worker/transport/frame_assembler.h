#pragma once

// Makes bundles of the frames of transport "grpc" (proto/tensor.proto). Frames are hostile input.

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "worker/engine/bundle.h"

namespace packtrain {

// Payload bytes of one frame.
inline constexpr size_t kFrameBytesMax = 1 << 20;

class FrameAssembler {
 public:
  // `max_bytes`: payload of the largest bundle.
  explicit FrameAssembler(size_t max_bytes) : max_bytes_(max_bytes) {}

  // Adds a frame, given as the pieces it arrived in, to `bundle`, the same one until it is
  // complete; keeps memory. True when it is complete. Errors: DATA_LOSS.
  absl::StatusOr<bool> Add(std::span<const std::string_view> pieces, Bundle* bundle);

  size_t bundle_bytes() const { return total_; }  // payload of the last bundle that was begun

 private:
  const size_t max_bytes_;
  bool begun_ = false;
  size_t total_ = 0, received_ = 0;
  size_t tensor_ = 0, offset_ = 0;  // where the next payload goes
  std::string scratch_;
};

}  // namespace packtrain

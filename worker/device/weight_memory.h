#pragma once

// Memory full of what every type takes for weights, to measure kernels with.

#include <cstddef>
#include <cstdint>
#include <optional>

#include "worker/device/measure.h"

namespace packtrain {

class WeightMemory {
 public:
  // More than the caches hold, in shared memory with whatever pages that gives: as weights lie.
  // nullopt if there is not enough memory to tell DRAM from caches.
  static std::optional<WeightMemory> Make(uint64_t usable_bytes, uint64_t largest_cache_bytes,
                                          int threads, const MeasureOptions& options);
  ~WeightMemory();
  WeightMemory(WeightMemory&& other) noexcept;
  WeightMemory& operator=(WeightMemory&&) = delete;

  const std::byte* data() const { return data_; }
  size_t bytes() const { return bytes_; }

 private:
  WeightMemory(std::byte* data, size_t bytes) : data_(data), bytes_(bytes) {}

  std::byte* data_;
  size_t bytes_;
};

}  // namespace packtrain

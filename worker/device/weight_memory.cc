#include "worker/device/weight_memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <random>
#include <utility>

#include "common/base/huge_pages.h"

namespace packtrain {

std::optional<WeightMemory> WeightMemory::Make(uint64_t usable_bytes, uint64_t largest_cache_bytes,
                                               int threads, const MeasureOptions& options) {
  const uint64_t wanted = std::max(options.dram_bytes / 2, kTimesCache * largest_cache_bytes);
  const size_t bytes = std::min(wanted, usable_bytes / 4) >> 21 << 21;
  if (bytes < 2 * largest_cache_bytes || bytes == 0) return std::nullopt;
  void* const mapped = MapShared(-1, bytes, PROT_READ | PROT_WRITE);
  if (mapped == MAP_FAILED) return std::nullopt;
  auto* const data = static_cast<std::byte*>(mapped);
  TakeHugePages(data, bytes, threads);
  // Scales of all types are then ordinary numbers.
  constexpr size_t kPattern = 1 << 20;
  std::minstd_rand random(1);
  for (size_t i = 0; i < kPattern; ++i) {
    data[i] = static_cast<std::byte>(((random() >> 8) & 0xbf) | 4);
  }
  for (size_t at = kPattern; at < bytes; at += kPattern) {
    std::memcpy(data + at, data, kPattern);
  }
  return WeightMemory(data, bytes);
}

WeightMemory::~WeightMemory() {
  if (data_ != nullptr) munmap(data_, bytes_);
}

WeightMemory::WeightMemory(WeightMemory&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), bytes_(other.bytes_) {}

}  // namespace packtrain

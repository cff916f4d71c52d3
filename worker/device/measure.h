#pragma once

// Measurements of this host: memory, flags between cores, storage. Each is bounded in time and
// leaves nothing behind: no file, no cached pages, no changed setting.

#include <cstdint>
#include <string>
#include <vector>

#include "common/config/host_facts.h"
#include "worker/kernels/cpu/kernels.h"

namespace packtrain {

// Memory that is read to measure it, in sizes of the largest cache. Caches keep their share of the
// bytes even when everything is read in turn, and a rate becomes too high by one part in so many:
// with 4, 123 GB/s of picked experts were seen where memory gives 106.
inline constexpr uint64_t kTimesCache = 12;

struct MeasureOptions {
  double seconds_each = 0.25;        // of one figure
  uint64_t dram_bytes = 1ull << 30;  // touched; at most a quarter of what is free is taken
};

// Rate at which N threads read private memory (huge pages asked for), for N = 1, 2, 4, ... up to
// `max_threads`. The best of three passes each; empty if there is not enough memory to tell DRAM
// from caches.
std::vector<ReadRate> MeasureDramRead(int max_threads, uint64_t usable_bytes,
                                      uint64_t largest_cache_bytes, const MeasureOptions& options);

// How fast `threads` threads multiply with weights of each type: for one token from memory, and for
// many. Empty as above; about 0.2 s per type.
std::vector<WeightRate> MeasureWeightRates(int threads, uint64_t usable_bytes,
                                           uint64_t largest_cache_bytes, const CpuKernels& kernels,
                                           const MeasureOptions& options);

// Round trip of a flag between two spinning threads, in us: median of at least 1000 trips. 0 if
// fewer than two cores are there or the other side did not answer in time.
double MeasureThreadRoundTrip(const MeasureOptions& options);
// The same between two processes through shared memory. Forks.
double MeasureProcessRoundTrip(const MeasureOptions& options);

// Reads past the page cache from `path`: a file, or a folder whose largest .gguf file is taken.
StorageFacts MeasureStorageRead(const std::string& path, const MeasureOptions& options);

}  // namespace packtrain

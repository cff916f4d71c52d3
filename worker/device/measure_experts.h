#pragma once

// Measurement of this host's CPU as an experts worker uses it: the experts that one token picks, in
// one layer after the other.

#include <cstdint>
#include <vector>

#include "common/config/host_facts.h"
#include "worker/device/measure.h"
#include "worker/kernels/cpu/kernels.h"

namespace packtrain {

// Enters in `facts` what a pass over picked experts takes with so many threads (experts_threads):
// experts_layer_us, that of one with next to no weights, and experts_gb_per_s of each of
// weight_rates, of what is added by weights that lie in memory. The medians of passes, for this is
// what a step waits for. Nothing if there is not enough memory to tell DRAM from caches. About 0.1
// s per type.
void MeasureExperts(int threads, uint64_t usable_bytes, uint64_t largest_cache_bytes,
                    const CpuKernels& kernels, const MeasureOptions& options, HostFacts* facts);

}  // namespace packtrain

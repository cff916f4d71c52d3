#pragma once

// What a host's facts say of the speed of its devices, with constants where nobody has measured.

#include "common/config/host_facts.h"
#include "coordinator/placement/weight_times.h"

namespace packtrain {

// Bytes/s of copies to a GPU.
double LinkOf(const GpuFacts& gpu);
// A link on which experts must not be waited for: a riser with one lane.
bool IsNarrow(const GpuFacts& gpu);

// Threads of one of several CPU workers of a host, if so many are wished (0: planned).
int ThreadsOf(const HostFacts& host, int wished, int workers);
// Bytes/s that so many threads read from memory.
double DramOf(const HostFacts& host, int threads);
// Of `threads` of the host's cores. Kernels that were measured were so on all of them. `read` is
// for types that were not.
WeightTimes CpuTimes(const HostFacts& host, int threads, double read);
// The same for the experts that a token picks; and the time that a layer takes besides their bytes.
WeightTimes CpuExpertTimes(const HostFacts& host, int threads);
double ExpertsLayerSeconds(const HostFacts& host);
// Routed experts on a GPU that reads `read` bytes/s and multiplies `flops` per second in bf16:
// their gate and up matrices, or their down matrices, which other kernels read in a decode step.
WeightTimes GpuExpertTimes(const GpuFacts& gpu, double read, double flops, bool down);

}  // namespace packtrain

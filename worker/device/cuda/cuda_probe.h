#pragma once

// What the CUDA driver knows of this machine's GPUs, and how fast they are with our kernels.

#include <vector>

#include "absl/status/statusor.h"
#include "common/config/host_facts.h"

namespace packtrain {

// All GPUs, by ordinal, without what the PCIe bus tells of their links and without rates.
// Errors: FAILED_PRECONDITION without a usable driver, INTERNAL with CUDA's words.
absl::StatusOr<std::vector<GpuFacts>> ProbeGpus();

// One of them with its rates, in about two seconds and at most 1.5 GiB of its memory; of a card
// without that much left they stay unknown. Once a process: kernels are set up for one device.
absl::StatusOr<GpuFacts> MeasureGpu(int device);

}  // namespace packtrain

#pragma once

// What the CUDA driver knows of this machine's GPUs, and how fast they are with our kernels.

#include <vector>

#include "absl/status/statusor.h"
#include "common/config/host_facts.h"

namespace packtrain {

// All GPUs, by ordinal, without what the PCIe bus tells of their links. With `measure` each is
// measured for about two seconds and at most 1.5 GiB of its memory; rates of a card without that
// much left stay unknown. Errors: FAILED_PRECONDITION without a usable driver, INTERNAL with
// CUDA's words.
absl::StatusOr<std::vector<GpuFacts>> ProbeGpus(bool measure);

}  // namespace packtrain

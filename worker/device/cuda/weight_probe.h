#pragma once

// How fast a GPU computes with weights of each type: what a plan's speeds are made of.

#include "absl/status/status.h"
#include "common/config/host_facts.h"
#include "worker/device/cuda/probe_bench.h"

namespace packtrain {

// Enters weight_rates and product_us. `bench` is open. Errors: INTERNAL with CUDA's words.
absl::Status MeasureWeights(ProbeBench* bench, GpuFacts* facts);

}  // namespace packtrain

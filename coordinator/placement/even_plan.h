#pragma once

// A plan without measurements: pinned layers stay where they are, the others are spread evenly over
// the stages that name none, and experts workers take what routed experts no stage was given.

#include <cstdint>

#include "absl/status/statusor.h"
#include "common/config/topology.h"
#include "common/model/config.h"
#include "coordinator/placement/plan.h"

namespace packtrain {

struct EvenPlanInput {
  const Topology* topology = nullptr;
  const ModelEntry* model = nullptr;  // context filled in; CheckLayers is OK
  const ModelConfig* config = nullptr;
  uint64_t weight_bytes = 0;  // of the whole model
  uint64_t memory_bytes = 0;  // that this host has left for it
};

struct EvenPlan {
  DeploymentPlan plan;
  uint64_t memory_bytes = 0;  // that it takes on this host, at most
};

// Errors: INVALID_ARGUMENT (pins that leave a worker without layers, or experts for a model without
// any), RESOURCE_EXHAUSTED (weights, or the context's KV cache, do not fit this host), each with
// place, value and what is allowed.
absl::StatusOr<EvenPlan> PlanEvenly(const EvenPlanInput& input);

}  // namespace packtrain

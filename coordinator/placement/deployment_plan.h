#pragma once

// From the planner's answer to what the fleet starts.

#include "absl/status/statusor.h"
#include "common/config/topology.h"
#include "coordinator/placement/placement.h"
#include "coordinator/placement/plan.h"

namespace packtrain {

// `entry` is the topology's model that `placed` answers; `hidden_dim` is the model's. Workers are
// named by role and order: "stage0" is that of the first layers, "experts0" the first of its kind.
// Errors: INVALID_ARGUMENT if a worker was planned on another host than the topology's first, where
// none can be started.
absl::StatusOr<DeploymentPlan> DeploymentPlanOf(const Topology& topology, const ModelEntry& entry,
                                                const DeploymentPlacement& placed, int hidden_dim);

}  // namespace packtrain

#pragma once

// A solution in the terms of its answer: who carries what, and what that takes of the devices.

#include <string>
#include <vector>

#include "coordinator/placement/placement.h"
#include "coordinator/placement/planner.h"

namespace packtrain {

// All but the bills.
DeploymentPlacement DescribeSolution(const Solution& solution);

// What the workers of a deployment take of their devices and, GPUs' stages, of their hosts.
std::vector<DeviceUse> UsesOf(const Solution& solution);

// Workers as uses and the fleet name them: "glm-5.2/stage0".
std::string StageUseName(const DeploymentWish& wish, size_t index);
std::string ExpertsUseName(const DeploymentWish& wish, size_t index);

}  // namespace packtrain

#pragma once

// Which devices could carry parts of a deployment: all of the rig, or those that the user lists,
// with their pins, rates and room.

#include <string>

#include "absl/status/status.h"
#include "coordinator/placement/problem.h"

namespace packtrain {

// Fills the stages, experts workers and forced owners of a problem that has its model, wish, rig,
// layers and hosts. Errors: INVALID_ARGUMENT for wishes that contradict the rig or the model.
absl::Status AddCandidates(const Taken& taken, Problem* problem);

// INVALID_ARGUMENT in front of which stands whose wish it is.
absl::Status WishError(const DeploymentWish& wish, const std::string& text);

}  // namespace packtrain

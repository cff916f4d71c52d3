#pragma once

// From a topology to the planner's question.

#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "common/config/topology.h"
#include "coordinator/placement/request.h"

namespace packtrain {

// A request that owns the models it points to.
struct TopologyRequest {
  PlanRequest request;
  std::vector<std::unique_ptr<ModelFacts>> models;
};

// The rig of a topology as far as it is known: this machine, which is its first host, and those
// with workers that run already. Of these, and of GPUs that are listed but were not found, the
// memory is unknown: the worker refuses what it has no room for. They are taken to be as fast as
// this machine.
Rig RigAround(const Topology& topology, HostFacts this_host);

// Reads the headers of the topology's models. A model without workers is planned whole. The rig's
// hosts must be those of the topology; one that names none means the rig's first host.
// Errors: INVALID_ARGUMENT for a host the rig does not have; those of reading a model.
absl::StatusOr<TopologyRequest> RequestFor(const Topology& topology, Rig rig);

}  // namespace packtrain

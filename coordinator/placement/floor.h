#pragma once

// The least time that a deployment's work can take: all bytes that must be read or copied and all
// products that must be computed, at the rates that were measured of the devices that do it, and
// nothing else.

#include <optional>
#include <string>

#include "common/config/host_facts.h"
#include "common/model/bill.h"
#include "coordinator/placement/plan.h"

namespace packtrain {

struct SpeedFloor {
  double tokens_per_s = 0;  // of all streams together
  double bytes = 0;         // that the devices read: of a prompt, or for one token of every stream
  std::string bound;        // what is busy longest: "cpu DRAM", "cuda:0 memory", "cuda:0 link"
};

// Decode of `streams` sequences with `depth` positions each, divided over the stages as the
// scheduler does. Experts that several streams share are read once; which ones is taken as chance.
// nullopt: a worker runs on another host, or its device's rate was not measured.
std::optional<SpeedFloor> FloorOfDecode(const ModelFacts& model, const DeploymentPlan& plan,
                                        const HostFacts& host, int streams, int depth);

// From a prompt of so many tokens to its first token. A CPU's products are counted at the rate of
// the type that it multiplies fastest. nullopt: as above.
std::optional<SpeedFloor> FloorOfPrefill(const ModelFacts& model, const DeploymentPlan& plan,
                                         const HostFacts& host, int prompt);

}  // namespace packtrain

#pragma once

// The least time that a deployment's steps can take: all bytes that must be read, at the rates that
// were measured of the devices that hold them, and nothing else.

#include <optional>
#include <string>

#include "common/config/host_facts.h"
#include "common/model/bill.h"
#include "coordinator/placement/plan.h"

namespace packtrain {

struct DecodeFloor {
  double tokens_per_s = 0;  // of all streams together
  double bytes = 0;         // that one token of every stream makes the devices read
  std::string bound;        // the device that reads longest: "cpu DRAM", "cuda:0 memory"
};

// Of `streams` sequences with `depth` positions each, divided over the stages as the scheduler
// does. Experts that several streams share are read once; which ones is taken as chance.
// nullopt: a worker runs on another host, or its device's rate was not measured.
std::optional<DecodeFloor> FloorOfDecode(const ModelFacts& model, const DeploymentPlan& plan,
                                         const HostFacts& host, int streams, int depth);

}  // namespace packtrain

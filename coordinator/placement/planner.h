#pragma once

// The planner: a pure function from models, hardware and wishes to an owner for every layer, a
// bill for every device and the speed to expect. Same request, same plan; no clock, no files.

#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "coordinator/placement/placement.h"
#include "coordinator/placement/problem.h"
#include "coordinator/placement/request.h"

namespace packtrain {

// Plans all deployments: first those whose workers are listed, then sidecars, then the rest.
//
// Errors: INVALID_ARGUMENT where wishes contradict rig, model or each other; RESOURCE_EXHAUSTED
// where nothing fits: the message says what is short, by how much, and what would fit.
absl::StatusOr<Placement> PlanPlacement(const PlanRequest& request);

// A change that makes a deployment fit; each has been tried. Exactly one of the values is set.
struct Remedy {
  std::string text;  // for a person, with numbers
  std::optional<int> context;
  std::optional<KvCacheType> kv_cache;
  std::optional<bool> mtp;
  std::optional<int> num_slots;
  std::optional<double> experts_share;  // routed experts quantised to this share of their bytes
  std::optional<uint64_t> more_ram;     // bytes, in every host
  bool without_pins = false;
};

// What one deployment lacks, in one line, and what would help.
struct Diagnosis {
  std::string reason;
  std::vector<Remedy> remedies;
};
Diagnosis Diagnose(const Rig& rig, const DeploymentWish& wish, const Taken& taken);

// The best assignment of one deployment, with the ubatch length chosen; nullopt: nothing fits.
struct Solution {
  Problem problem;
  std::vector<StageChoice> stages;
};
absl::StatusOr<std::optional<Solution>> Solve(const Rig& rig, const DeploymentWish& wish,
                                              const Taken& taken);
// Whether anything fits, with the shortest ubatch. Cheaper than Solve.
bool Fits(const Rig& rig, const DeploymentWish& wish, const Taken& taken);

}  // namespace packtrain

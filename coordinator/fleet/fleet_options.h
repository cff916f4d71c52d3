#pragma once

// How a fleet is run and whom it tells of what.

#include <chrono>
#include <cstdint>
#include <functional>
#include <string>

#include "coordinator/placement/plan.h"

namespace packtrain {

enum class FleetState { kStarting, kReady, kRecovering, kFailed, kStopped };

struct FleetOptions {
  std::string worker_binary;    // empty: packtrain-worker beside our own program
  bool create_segments = true;  // false: for workers that have no weights (tests)
  std::chrono::milliseconds step_timeout{60'000};
  std::chrono::milliseconds load_timeout{std::chrono::hours(2)};
  // Called by threads of the fleet's.
  std::function<void(const std::string& worker, uint64_t done, uint64_t total)> progress;
  std::function<void(const WorkerPlan&, const WorkerMemory&)> loaded;
  std::function<void(FleetState, const std::string& reason)> state;
  // All workers serve again under a new epoch; no slot, page or snapshot holds anything. Called
  // before the state becomes kReady; steps submitted until then fail.
  std::function<void()> slots_lost;
};

}  // namespace packtrain

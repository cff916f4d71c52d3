#pragma once

// `packtrain plan`: where a model would be placed, what it would take and how fast it would be,
// from headers alone; for this machine or for one described in YAML.

#include <CLI/App.hpp>
#include <string>

#include "absl/status/status.h"

namespace packtrain {

struct PlanOptions {
  std::string topology_path;  // or the next two
  std::string model_path;
  std::string sidecar_path;
  std::string rig_path;  // empty: this machine, as `packtrain doctor` has found it
  int context = 0;
  std::string kv_cache = "f16";
  int slots = 8;
  int ubatch = 0;
  int stages = 0;
  bool experts_worker = false;
  bool mtp = false;
  bool json = false;
};

CLI::App* AddPlan(CLI::App* app, PlanOptions* options);

// Writes the plan to standard output. Errors: NOT_FOUND, INVALID_ARGUMENT for bad input;
// RESOURCE_EXHAUSTED where nothing fits, with what would.
absl::Status RunPlan(const PlanOptions& options);

}  // namespace packtrain

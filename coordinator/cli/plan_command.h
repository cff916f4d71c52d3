#pragma once

// `packtrain plan`: where a model would be placed, what it would take and how fast it would be,
// from headers alone; for this machine or for one described in YAML.

#include <CLI/App.hpp>
#include <string>

#include "absl/status/status.h"
#include "coordinator/cli/serve_options.h"

namespace packtrain {

struct PlanOptions {
  ServeOptions served;
  std::string rig_path;  // empty: this machine, as `packtrain doctor` has found it
  bool mtp = false;
  bool json = false;
};

CLI::App* AddPlan(CLI::App* app, PlanOptions* options);

// Writes the plan to standard output. Errors: NOT_FOUND, INVALID_ARGUMENT for bad input;
// RESOURCE_EXHAUSTED where nothing fits, with what would.
absl::Status RunPlan(const PlanOptions& options);

}  // namespace packtrain

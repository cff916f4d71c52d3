#pragma once

// What is to be served, as a command line says it: a topology file, or flags. Without flags for CPU
// workers the planner chooses the devices.

#include <CLI/App.hpp>
#include <string>

#include "absl/status/statusor.h"
#include "common/config/topology.h"

namespace packtrain {

struct ServeOptions {
  std::string topology_path;  // or, with the rest:
  std::string model_path;
  std::string sidecar_path;
  std::string host = "127.0.0.1";
  int port = 8001;
  int context = 0;
  std::string kv_cache = "f16";
  int threads = 0;
  int stages = 0;               // 0: planned; else so many CPU workers
  bool experts_worker = false;  // a CPU worker for routed experts, and stages on the CPU
  int slots = 0;                // 0: planned
  int ubatch = 0;
  std::string thinking = "off";
};

// Adds the topology file and the flags that stand for one: models, context, workers. Returns the
// option of the model file, which all of them need.
CLI::Option* AddServedModel(CLI::App* command, ServeOptions* options);

// Reads the topology file or makes one of the flags; model files exist.
// Errors: INVALID_ARGUMENT, NOT_FOUND.
absl::StatusOr<Topology> MakeTopology(const ServeOptions& options);

}  // namespace packtrain

#pragma once

// `packtrain serve` without a topology file: the flags as a topology of CPU workers on this
// machine.

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
  int stages = 1;
  bool experts_worker = false;
  int slots = 8;
  int ubatch = 0;
  std::string thinking = "off";
};

// Reads the topology file or makes one of the flags; model files exist.
// Errors: INVALID_ARGUMENT, NOT_FOUND.
absl::StatusOr<Topology> MakeTopology(const ServeOptions& options);

}  // namespace packtrain

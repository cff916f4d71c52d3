#pragma once

// The hardware to plan for: hosts, their devices, and the network between them. Read from a YAML
// file (configs/rigs), so that a rig that one only thinks of buying can be planned for, or from
// the facts that `packtrain doctor` has measured.

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/config/host_facts.h"

namespace packtrain {

struct NetworkFacts {
  std::string from, to;  // names of hosts; the same both ways
  double gb_per_s = 0;
  double round_trip_us = 0;
};

struct Rig {
  std::string name;
  std::vector<HostFacts> hosts;
  std::vector<NetworkFacts> network;

  const HostFacts* FindHost(const std::string& name) const;  // nullptr if there is none
  // The facts of a pair of hosts, in either order; 1 GbE if nothing is said.
  NetworkFacts Network(const std::string& a, const std::string& b) const;
};

// Reads a rig file:
//
//   name: quad-3090
//   hosts:
//     - name: box1
//       cores: 12                  # physical
//       memory_gib: 188            # that the system leaves for us
//       dram_read_gbps: 80         # GB/s all cores read; or {1: 20, 6: 70, 12: 80} by threads
//       experts_read_gbps: 68      # optional: what the expert kernels reach of it
//       gpus:
//         - {name: RTX 3090, memory_gib: 24, read_gbps: 936, tflops: 71, link_gbps: 13}
//   network:
//     - {between: [box1, box2], gbps: 1.1, round_trip_us: 90}     # gbps is GB/s here as above
//
// or the facts of one host that `packtrain doctor` has written on it (a path that ends in .json).
//
// Errors: NOT_FOUND; INVALID_ARGUMENT with "file:line: key: what is wrong and what is allowed".
absl::StatusOr<Rig> LoadRig(const std::string& path);
absl::StatusOr<Rig> ParseRig(const std::string& text, const std::string& source);

}  // namespace packtrain

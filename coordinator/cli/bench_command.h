#pragma once

// `packtrain bench`: how fast a deployment really is, through the same pipeline that serves it, and
// how near that is to what its devices could do.

#include <CLI/App.hpp>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "coordinator/cli/serve_options.h"

namespace packtrain {

struct BenchOptions {
  ServeOptions served;
  std::string url;                         // or a running endpoint, HOST:PORT
  std::string api_key;                     // of the endpoint
  std::string name;                        // of the model to measure; empty: the topology's first
  std::vector<int> prompts = {512, 2048};  // tokens whose prefill is measured
  int generate = 64;                       // tokens that a stream decodes
  std::vector<int> depths = {2048};
  std::vector<int> streams = {1, 2, 4, 8};
  int repeats = 3;
  bool json = false;
};

CLI::App* AddBench(CLI::App* app, BenchOptions* options);

// Starts the workers as serve would, measures, writes to standard output and ends them; or measures
// a running endpoint. What the context or the KV cache has no room for is skipped, and named.
// Errors: as of serving, of chat.
absl::Status RunBench(const BenchOptions& options);

}  // namespace packtrain

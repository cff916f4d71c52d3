#pragma once

// `packtrain doctor`: what this machine has, how fast it is, what hurts and how to mend it.

#include <CLI/App.hpp>
#include <string>
#include <vector>

#include "absl/status/status.h"

namespace packtrain {

struct DoctorOptions {
  std::vector<std::string> models;  // files or folders whose storage is measured
  bool json = false;
  bool no_cache = false;
};

CLI::App* AddDoctor(CLI::App* app, DoctorOptions* options);

// Writes to standard output, and the facts to the cache that `packtrain plan` reads. Changes
// nothing else.
absl::Status RunDoctor(const DoctorOptions& options);

}  // namespace packtrain

#pragma once

// Everything `packtrain-worker --probe` tells about its host.

#include <string>
#include <vector>

#include "common/config/host_facts.h"

namespace packtrain {

struct ProbeOptions {
  bool measure = true;               // false: only what the kernel tells
  std::vector<std::string> storage;  // files or folders whose storage is read
};

// Takes a few seconds with measurements and leaves nothing changed. GPUs are those on the bus.
HostFacts ProbeHost(const ProbeOptions& options);

}  // namespace packtrain

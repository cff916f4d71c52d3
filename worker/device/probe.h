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

// Takes ten to twenty seconds with measurements and leaves nothing changed. GPUs that the CUDA
// library cannot use are told by what the bus knows of them.
HostFacts ProbeHost(const ProbeOptions& options);

}  // namespace packtrain

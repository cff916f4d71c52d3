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

// Takes ten to twenty seconds with measurements and leaves nothing changed. GPUs are told, not
// measured; those that the CUDA library cannot use by what the bus knows of them.
HostFacts ProbeHost(const ProbeOptions& options);

// One GPU by its ordinal, measured: `gpus` has it, or `gpu_note` says why not; nothing else is set.
// Once a process, as kernels are set up for one device in it. Takes about two seconds.
HostFacts ProbeCard(int device);

}  // namespace packtrain

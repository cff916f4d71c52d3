#pragma once

// What hurts on a host, and what to do about it: judged from facts alone.

#include <string>
#include <vector>

#include "common/config/host_facts.h"

namespace packtrain {

struct Finding {
  std::string what;  // "cuda:3 runs at x1 of x16"
  std::string fix;
};

// In the order of what costs most.
std::vector<Finding> FindFaults(const HostFacts& facts);

}  // namespace packtrain

#pragma once

// Facts that the kernel tells about this host: cores, caches, NUMA, memory, limits, PCIe. Reads
// /proc and /sys only and changes nothing; what cannot be read stays unknown.

#include <string>
#include <vector>

#include "common/config/host_facts.h"

namespace packtrain {

// Cores, caches and NUMA nodes that this process may use (hwloc), and the CPU limit of its cgroup.
CpuFacts ReadCpuFacts();

// The CPUs that `threads` threads should be bound to, of those that this process may use: different
// cores as far as they go, then the cores' other hardware threads, spread evenly over caches and
// NUMA nodes (and over cores where a virtual machine hides which CPUs share one). Empty if there
// are more threads than CPUs or nothing can be told.
std::vector<int> SpreadCpus(int threads);

// Memory, huge pages and limits. `root` is put in front of /proc and /sys ("" for this machine).
MemoryFacts ReadMemoryFacts(const std::string& root);

// NVIDIA cards on the PCIe bus in bus order, with link speed and width now and at most. Their
// `index` is -1: only the driver knows which "cuda:N" a card is.
std::vector<GpuFacts> ReadPciGpus(const std::string& root);

}  // namespace packtrain

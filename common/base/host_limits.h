#pragma once

// What this process may take of its host, and who may burn a core by spinning: read by planner,
// coordinator and workers alike, so that all of them decide by the same numbers.

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"

namespace packtrain {

// Folders of this process's control groups (version 2, else the named version-1 controller), the
// innermost first; in a container the outer ones may be invisible. `root` is put in front of /proc
// and /sys ("" for this machine), here and below.
std::vector<std::string> CgroupFolders(const std::string& root, const std::string& controller);

// Quota of the control groups in cores, 0: no limit.
double ReadCpuLimit(const std::string& root);

// Hardware threads this process may run on: affinity mask and cgroup quota.
int UsableCpus();

// How long in us a waiting thread may spin beyond the moment it expects to be called: 50 where
// `spinners`, all threads that could spin at once, do not outnumber the CPUs, 0 otherwise and on
// two CPUs, where everybody else needs one.
int SpinBudget(int spinners, int usable_cpus);

struct MemoryLimits {
  static constexpr uint64_t kNone = ~uint64_t{0};
  uint64_t available_bytes = 0;    // of the host, as the kernel estimates it
  uint64_t cgroup_bytes = kNone;   // the tightest limit above this process
  uint64_t cgroup_used_bytes = 0;  // of that group, without page cache that is easily given up
};

MemoryLimits ReadMemoryLimits(const std::string& root);

// RESOURCE_EXHAUSTED, with the numbers, if `bytes` for `what` are more than `limits` leave.
absl::Status CheckMemory(const MemoryLimits& limits, uint64_t bytes, const std::string& what);

}  // namespace packtrain

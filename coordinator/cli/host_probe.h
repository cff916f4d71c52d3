#pragma once

// What this machine has, asked of the worker binary, and the cache of it that `packtrain doctor`
// writes.

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/config/host_facts.h"

namespace packtrain {

// $XDG_CACHE_HOME/packtrain/host.json, else ~/.cache/packtrain/host.json; empty without a home.
std::string FactsCachePath();

// Runs `packtrain-worker --probe` from beside this program, for the host and then for each GPU;
// `storage` are files or folders whose storage is measured. Takes seconds. Errors: UNAVAILABLE with
// what the probe said; DEADLINE_EXCEEDED after 50 s.
absl::StatusOr<HostFacts> ProbeThisHost(const std::vector<std::string>& storage);

// Writes atomically. Errors: that of the system, naming the path.
absl::Status WriteFactsCache(const HostFacts& facts, const std::string& path);

enum class Unmeasured {
  kLeave,    // rates that the cache does not have stay unknown: takes a moment
  kMeasure,  // measured if there is no cache: takes seconds
};

// What this machine has now, with the rates that the cache keeps. A cache that cannot be read is
// an error that says to run doctor.
absl::StatusOr<HostFacts> FactsForPlanning(Unmeasured unmeasured);

}  // namespace packtrain

#pragma once

// The search over all divisions of a model: dynamic programming over (last device used, layers
// placed so far), each state keeping every partial assignment that is not beaten in both time and
// RAM. Exact up to the choice of splits of one stage's experts over several hosts, of which at most
// a dozen are tried. Deterministic.

#include <optional>
#include <vector>

#include "coordinator/placement/problem.h"

namespace packtrain {

struct SearchLimits {
  double stage_prefill_seconds = 1e18;  // no stage may take longer for a ubatch
  bool any_ram = false;                 // as if the hosts' RAM had no end
};

struct SearchResult {
  std::vector<StageChoice> stages;
  double seconds = 0;           // of a decode step, without kStepSeconds
  std::vector<uint64_t> host;   // RAM used
};

// The assignment of least decode time; with equal times the one found first. nullopt: none fits.
std::optional<SearchResult> FindBest(const Problem& problem, const SearchLimits& limits);

// The least RAM that any assignment needs of all hosts together; nullopt: the devices do not hold
// the rest of the model.
std::optional<SearchResult> FindLeastRam(const Problem& problem);

}  // namespace packtrain

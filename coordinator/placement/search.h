#pragma once

// The search over all divisions of a model: dynamic programming over (last device used, layers
// placed so far), each state keeping every partial assignment that is not beaten in both time and
// RAM. Exact with one host; with several, only some ways of dividing one stage's experts between
// two hosts are tried for large models. Deterministic.

#include <memory>
#include <optional>
#include <vector>

#include "coordinator/placement/problem.h"

namespace packtrain {

struct SearchLimits {
  double stage_prefill_seconds = 1e18;  // no stage may take longer for a ubatch
};

struct SearchResult {
  std::vector<StageChoice> stages;
  double seconds = 0;          // of a decode step, without kStepSeconds
  std::vector<uint64_t> host;  // RAM used
};

class DivisionSearch {
 public:
  // Works out what each device could carry. `problem` must outlive this.
  explicit DivisionSearch(const Problem& problem);
  ~DivisionSearch();
  DivisionSearch(const DivisionSearch&) = delete;
  DivisionSearch& operator=(const DivisionSearch&) = delete;

  // The assignment of least decode time; of equals the one found first. nullopt: none fits within
  // the limits.
  std::optional<SearchResult> Find(const SearchLimits& limits);
  // The assignment that needs least RAM of all hosts together, as if there were no end of it.
  // nullopt: the stages' devices do not hold what cannot leave them.
  std::optional<SearchResult> FindLeastRam();

  class Table;

 private:
  const Table& All();  // made when it is needed

  const Problem& problem_;
  std::unique_ptr<Table> nearest_, all_;
};

}  // namespace packtrain

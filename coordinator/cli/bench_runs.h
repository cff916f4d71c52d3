#pragma once

// Timed requests to a deployment: prompts of random token ids, greedy, to their full length.

#include <cstdint>
#include <random>
#include <vector>

#include "absl/status/statusor.h"
#include "coordinator/api/deployment.h"

namespace packtrain {

// One thing to measure.
struct BenchCase {
  int streams = 1;
  int prompt = 0;    // tokens of each stream's prompt
  int generate = 0;  // tokens that each stream then decodes; 0: the prompt's time is measured
};

class BenchRuns {
 public:
  // `deployment` is borrowed and ready.
  explicit BenchRuns(Deployment* deployment) : deployment_(deployment) {}

  // Runs all streams at once. Tokens per second of all together: of prefill from sending the
  // prompts to the last stream's first token; of decode from there to the first stream's end, so
  // that every stream decodes all the while.
  // Errors: that of a request; INTERNAL if a part of a prompt came from the cache.
  absl::StatusOr<double> Measure(const BenchCase& bench_case);

 private:
  Deployment* const deployment_;
  std::mt19937_64 random_;  // seeded alike every time: no prompt occurs twice in a run
};

}  // namespace packtrain

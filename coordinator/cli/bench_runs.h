#pragma once

// Timed requests: prompts of random token ids, greedy, to their full length.

#include <chrono>
#include <random>
#include <vector>

#include "absl/status/statusor.h"
#include "common/model/step.h"
#include "common/model/token.h"
#include "coordinator/api/deployment.h"

namespace packtrain {

// When each token of one stream came.
using TokenTimes = std::vector<std::chrono::steady_clock::time_point>;

// What answers the requests.
class BenchTarget {
 public:
  virtual ~BenchTarget() = default;
  // Ids of prompts are smaller.
  virtual int vocab_size() const = 0;
  // Sends all prompts at once, for `tokens` tokens each; returns when all are done. Errors: that of
  // a request; INTERNAL if a part of a prompt came from the cache.
  virtual absl::StatusOr<std::vector<TokenTimes>> Run(std::vector<std::vector<TokenId>> prompts,
                                                      int tokens) = 0;
  // Medians of the last decode steps; zeros if it does not tell.
  virtual StepTimes decode_step() = 0;
};

// A deployment of this process, borrowed and ready.
class DeploymentTarget : public BenchTarget {
 public:
  explicit DeploymentTarget(Deployment* deployment) : deployment_(deployment) {}
  int vocab_size() const override { return deployment_->tokenizer().vocab_size(); }
  absl::StatusOr<std::vector<TokenTimes>> Run(std::vector<std::vector<TokenId>> prompts,
                                              int tokens) override;
  StepTimes decode_step() override { return deployment_->load().decode_step; }

 private:
  Deployment* const deployment_;
};

// One thing to measure.
struct BenchCase {
  int streams = 1;
  int prompt = 0;    // tokens of each stream's prompt
  int generate = 0;  // tokens that each stream then decodes; 0: the prompt's time is measured

  bool operator==(const BenchCase&) const = default;
};

// Tokens per second of all streams together.
struct BenchRates {
  double prefill = 0;  // from sending the prompts to the last stream's first token
  double decode = 0;   // from there to the first stream's end: every stream decodes all the while
};

class BenchRuns {
 public:
  // `target` is borrowed.
  explicit BenchRuns(BenchTarget* target) : target_(target) {}

  // Runs all streams at once. Errors: those of the target.
  absl::StatusOr<BenchRates> Measure(const BenchCase& bench_case);

 private:
  BenchTarget* const target_;
  std::mt19937_64 random_{std::random_device{}()};  // no prompt occurs twice, in other runs neither
};

}  // namespace packtrain

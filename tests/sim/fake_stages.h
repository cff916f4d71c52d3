#pragma once

// A whole pipeline's worth of workers without tensors: KV pages hold token ids, recurrent state is
// a hash of them, and the next token is a function of what the pages, the state and the sampler's
// history say. A page that was freed, shared or copied wrongly changes the tokens.

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "common/model/step.h"
#include "coordinator/scheduler/pipeline.h"

namespace packtrain {

inline constexpr TokenId kFakeEnd = 0;  // end of generation
inline constexpr int kFakeVocab = 1000;

// The token after `ids`, from scratch. About one in `end_every` is kFakeEnd.
TokenId FakeNextToken(std::span<const TokenId> ids, uint64_t seed, int end_every);

class FakeStages {
 public:
  FakeStages(const PipelineLimits& limits, int end_every);
  // Steps in order. What breaks the rules of common/model/step.h is noted in violation().
  StepResult Execute(const Step& step);
  // As after a restart.
  void Reset();
  const std::string& violation() const { return violation_; }

 private:
  struct Slot {
    bool used = false;
    std::vector<int32_t> pages;
    int positions = 0;
    uint64_t state = 0;            // recurrent
    std::vector<TokenId> history;  // the sampler's
    uint64_t seed = 0;
    std::map<uint64_t, TokenId> sampled;  // by step
  };
  void Violate(const Step& step, const StepSequence& part, const std::string& what);
  void RunPart(const Step& step, const StepSequence& part, StepResult* result);
  void Begin(const StepSequence& part, Slot* slot);
  std::vector<TokenId> Contents(const Slot& slot) const;
  TokenId Sample(const Slot& slot) const;

  const PipelineLimits limits_;
  const int end_every_;
  uint64_t last_step_ = 0;
  std::vector<Slot> slots_;
  std::vector<std::vector<TokenId>> pages_;
  std::vector<uint64_t> snapshots_;
  std::string violation_;
};

}  // namespace packtrain

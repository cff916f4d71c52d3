#pragma once

// Chooses a token from logits. Everything it depends on is an argument, so a replayed request, a
// draft that is verified and each of several choices come out the same wherever they are computed.

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "common/model/sampling.h"
#include "common/model/step.h"
#include "common/model/token.h"

namespace packtrain {

// Holds scratch memory only. One thread at a time.
class Sampler {
 public:
  struct Input {
    std::span<const float> logits;  // [vocab_size]; NaN counts as impossible
    const SamplingParams* params = nullptr;
    std::span<const TokenId> ids;  // of the sequence so far, all below vocab_size
    int32_t prompt_tokens = 0;     // how many of them are prompt
  };

  // In this order: logit bias; repetition, presence and frequency penalties; temperature; top-k,
  // top-p of what is left, min-p; Gumbel-max over what is kept, with noise that is a function of
  // (seed, choice, number of ids so far, token id). Ties go to the lower id. Temperature 0 takes
  // the best after bias and penalties. Cost: a few passes over the logits.
  TokenId Sample(const Input& input);

  // What a device that keeps the logits brings to sample from.
  struct Best {
    std::span<const TokenLogprob> logits;  // the largest, best first, ties to the lower id
    bool all = false;                      // there are no others
    double relative_sum = 0;  // over the vocabulary, of exp((logit - largest) / temperature)
  };
  // The logits stay as they are: no bias, no penalties.
  static bool KeepsLogits(const SamplingParams& params);
  // More than the temperature decides who may be drawn.
  static bool Filters(const SamplingParams& params);
  // Sample's token by these parameters behind `num_ids` ids; nothing if it could be among the
  // logits that are not there. REQUIRES: KeepsLogits, temperature > 0.
  static std::optional<TokenId> SampleBest(const SamplingParams& params, const Best& best,
                                           size_t num_ids);

  // Log-probabilities by the logits as they are: that of `token`, and the `top` largest, best
  // first.
  static float Logprob(std::span<const float> logits, TokenId token);
  std::vector<TokenLogprob> TopLogprobs(std::span<const float> logits, int top);

 private:
  void Penalise(const Input& input);
  void KeepTop(const SamplingParams& params);
  TokenId Draw(const SamplingParams& params, size_t position) const;

  std::vector<float> logits_;    // modified copy
  std::vector<TokenId> kept_;    // candidates
  std::vector<int32_t> counts_;  // per id, of the output
};

}  // namespace packtrain

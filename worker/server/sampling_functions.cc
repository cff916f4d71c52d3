#include "worker/server/sampling_functions.h"

#include <memory>
#include <span>
#include <vector>

#include "worker/ops/sampler.h"

namespace packtrain {

SamplingFunctions MakeSampling() {
  auto sampler = std::make_shared<Sampler>();
  SamplingFunctions functions;
  functions.sample = [sampler](std::span<const float> logits, const SequenceStart& start,
                               std::span<const TokenId> ids, int top_logprobs) {
    SequenceOutput output;
    output.token = sampler->Sample({.logits = logits,
                                    .params = &start.sampling,
                                    .ids = ids,
                                    .prompt_tokens = start.prompt_tokens});
    if (top_logprobs >= 0) {
      output.logprob = Sampler::Logprob(logits, output.token);
      output.top = sampler->TopLogprobs(logits, top_logprobs);
    }
    return output;
  };
  functions.score = [sampler](std::span<const float> logits, TokenId token, int top) {
    std::vector<TokenLogprob> entries = {{token, Sampler::Logprob(logits, token)}};
    const std::vector<TokenLogprob> best = sampler->TopLogprobs(logits, top);
    entries.insert(entries.end(), best.begin(), best.end());
    return entries;
  };
  return functions;
}

}  // namespace packtrain

#pragma once

// How one token is chosen. A token is a pure function of (logits, these parameters, ids so far,
// position); there is no other sampler state, so replay, speculation and several choices agree.

#include <cstdint>
#include <vector>

namespace packtrain {

struct LogitBias {
  int32_t token_id = 0;
  float bias = 0.0F;  // added to the logit before everything else; -100 bans, 100 forces
};

// The defaults change nothing: plain sampling from the model's distribution. Ranges are those that
// the API accepts; the code that samples may rely on them.
struct SamplingParams {
  float temperature = 1.0F;           // [0, 2]; 0 is greedy, ties to the lower id
  int32_t top_k = 0;                  // >= 0; 0 keeps all
  float top_p = 1.0F;                 // (0, 1]; 1 keeps all
  float min_p = 0.0F;                 // [0, 1]; relative to the most likely token; 0 keeps all
  float repetition_penalty = 1.0F;    // (0, 2]; divides positive, multiplies negative logits of ids
                                      // among the last `repeat_last_n` of prompt and output
  int32_t repeat_last_n = 64;         // >= -1; -1 is the whole sequence, 0 switches it off
  float presence_penalty = 0.0F;      // [-2, 2]; subtracted once per id that the output contains
  float frequency_penalty = 0.0F;     // [-2, 2]; subtracted per occurrence in the output
  std::vector<LogitBias> logit_bias;  // at most one entry per id
  uint64_t seed = 0;                  // drawn by the API for a request that gives none
  uint32_t choice = 0;                // which of `n` outputs of one request this is
};

}  // namespace packtrain

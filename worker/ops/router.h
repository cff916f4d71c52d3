#pragma once

// Chooses a token's experts and their weights.

#include <cstdint>

#include "common/model/config.h"

namespace packtrain {

// One token.
//   logits   [num_experts], overwritten
//   bias     [num_experts] or nullptr: counts for the choice, not for the weights
//   ids      [top_k] out, best first, ties to the lower id
//   weights  [top_k] out, normalised and scaled as the model wants it
//   scratch  [num_experts + num_groups]
// Source: DeepSeek-V3's routing; without groups it is plain top-k.
void Route(const MoeConfig& moe, float* logits, const float* bias, int32_t* ids, float* weights,
           float* scratch);

}  // namespace packtrain

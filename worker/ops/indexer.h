#pragma once

// The lightning indexer of DeepSeek sparse attention: scores cached keys cheaply and keeps the best
// positions of each query.

#include <cstdint>
#include <span>

#include "worker/kernels/cpu/kernels.h"
#include "worker/kv_cache/paged_rows.h"

namespace packtrain {

// scores[i] = scale * sum over h of weights[h] * max(0, q_h . k) for the `count` positions from
// first, which lie in one page.
//   q [heads, keys.dim], weights [heads], scratch [64 * (keys.dim + heads)]
//   scores: 64 floats may be written
void IndexScores(const VectorOps& ops, const PagedRows& keys, int32_t page, int count,
                 const float* q, const float* weights, int heads, float scale, float* scratch,
                 float* scores);

// The top_k positions of largest score, ties to the lower position, written in ascending order; all
// if there are no more. Returns how many.
//   scores   no NaN;  scratch [scores.size()]
int SelectTop(std::span<const float> scores, int top_k, float* scratch, int32_t* selected);

}  // namespace packtrain

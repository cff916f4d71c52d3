#include "worker/ops/indexer.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <numeric>

namespace packtrain {

void IndexScores(const VectorOps& ops, const PagedRows& keys, int32_t page, int count,
                 const float* q, const float* weights, int heads, float scale, float* scratch,
                 float* scores) {
  const auto dim = static_cast<size_t>(keys.dim());
  keys.Read(page, 0, count, 0, scratch, ops.decode);
  ops.index_scores(q, weights, static_cast<size_t>(heads), scratch, static_cast<size_t>(count), dim,
                   scale, scratch + kPagePositions * dim, scores);
  // Without order a NaN would break the selection.
  for (int i = 0; i < count; ++i) {
    if (std::isnan(scores[i])) scores[i] = -std::numeric_limits<float>::infinity();
  }
}

int SelectTop(std::span<const float> scores, int top_k, float* scratch, int32_t* selected) {
  const int size = static_cast<int>(scores.size());
  if (size <= top_k) {
    std::iota(selected, selected + size, 0);
    return size;
  }
  std::copy(scores.begin(), scores.end(), scratch);
  float* const last = scratch + top_k - 1;
  std::nth_element(scratch, last, scratch + size, std::greater<float>());
  const float threshold = *last;
  // Of those that tie for the last places the first ones are taken.
  auto ties = top_k - std::count_if(scratch, last, [=](float x) { return x > threshold; });
  int count = 0;
  for (int i = 0; i < size; ++i) {
    const float score = scores[static_cast<size_t>(i)];
    if (score < threshold || (score == threshold && ties-- <= 0)) continue;
    selected[count++] = i;
  }
  return count;
}

}  // namespace packtrain

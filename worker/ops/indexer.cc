#include "worker/ops/indexer.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "worker/ops/vector_math.h"

namespace packtrain {

void IndexScores(const PagedRows& keys, int32_t page, int count, const float* q,
                 const float* weights, int heads, float scale, float* scratch, float* scores) {
  const auto dim = static_cast<size_t>(keys.dim());
  keys.Read(page, 0, count, 0, scratch);
  for (size_t i = 0; i < static_cast<size_t>(count); ++i) {
    float sum = 0;
    for (size_t h = 0; h < static_cast<size_t>(heads); ++h) {
      sum += weights[h] * std::max(0.0F, Dot(q + h * dim, scratch + i * dim, dim));
    }
    // Without order a NaN would break the selection.
    scores[i] = std::isnan(sum) ? -std::numeric_limits<float>::infinity() : scale * sum;
  }
}

int SelectTop(std::span<const float> scores, int top_k, std::vector<int32_t>* order,
              int32_t* selected) {
  const int count = std::min(top_k, static_cast<int>(scores.size()));
  order->resize(scores.size());
  std::iota(order->begin(), order->end(), 0);
  const auto better = [&](int32_t a, int32_t b) {
    const float score_a = scores[static_cast<size_t>(a)], score_b = scores[static_cast<size_t>(b)];
    return score_a > score_b || (score_a == score_b && a < b);
  };
  if (count < static_cast<int>(scores.size())) {
    std::nth_element(order->begin(), order->begin() + count, order->end(), better);
  }
  std::sort(order->begin(), order->begin() + count);
  std::copy_n(order->begin(), count, selected);
  return count;
}

}  // namespace packtrain

#include "worker/ops/router.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "worker/ops/vector_math.h"

namespace packtrain {
namespace {

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

void Probabilities(GatingKind gating, float* x, int n) {
  if (gating == GatingKind::kSigmoid) {
    for (int i = 0; i < n; ++i) x[i] = Sigmoid(x[i]);
    return;
  }
  const float max = *std::max_element(x, x + n);
  float sum = 0;
  for (int i = 0; i < n; ++i) {
    x[i] = std::exp(x[i] - max);
    sum += x[i];
  }
  for (int i = 0; i < n; ++i) x[i] /= sum;
}

// Index of the first largest entry.
int ArgMax(const float* x, int n) { return static_cast<int>(std::max_element(x, x + n) - x); }

// Leaves the scores of the best groups; a group counts as its two best experts.
void KeepBestGroups(const MoeConfig& moe, float* scores, float* group_scores) {
  const int size = moe.num_experts / moe.num_groups;
  for (int g = 0; g < moe.num_groups; ++g) {
    float best = kMinusInfinity, second = kMinusInfinity;
    for (int i = 0; i < size; ++i) {
      const float score = scores[g * size + i];
      if (score > best) {
        second = best;
        best = score;
      } else {
        second = std::max(second, score);
      }
    }
    group_scores[g] = size > 1 ? best + second : best;
  }
  for (int used = 0; used < moe.groups_used; ++used) {
    group_scores[ArgMax(group_scores, moe.num_groups)] = kMinusInfinity;
  }
  for (int g = 0; g < moe.num_groups; ++g) {
    if (group_scores[g] == kMinusInfinity) continue;  // one of the chosen
    std::fill_n(scores + g * size, size, kMinusInfinity);
  }
}

}  // namespace

void Route(const MoeConfig& moe, float* logits, const float* bias, int32_t* ids, float* weights,
           float* scratch) {
  const int n = moe.num_experts;
  Probabilities(moe.gating, logits, n);
  float* scores = scratch;
  for (int i = 0; i < n; ++i) scores[i] = logits[i] + (bias == nullptr ? 0.0F : bias[i]);
  if (moe.num_groups > 1) KeepBestGroups(moe, scores, scratch + n);
  float sum = 0;
  for (int k = 0; k < moe.top_k; ++k) {
    const int best = ArgMax(scores, n);
    scores[best] = kMinusInfinity;
    ids[k] = best;
    weights[k] = logits[best];
    sum += weights[k];
  }
  // The floor keeps a token whose gates are all shut finite.
  const float divisor = moe.normalise ? std::max(sum, 6.103515625e-5F) : 1.0F;
  for (int k = 0; k < moe.top_k; ++k) weights[k] = weights[k] / divisor * moe.scale;
}

}  // namespace packtrain

#include "worker/ops/attention.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "worker/ops/vector_math.h"

namespace packtrain {

void Attention::Run(const Query& query) {
  const auto heads = static_cast<size_t>(query.heads);
  keys_.resize(size_t{kPagePositions} * static_cast<size_t>(query.keys->dim()));
  values_.resize(size_t{kPagePositions} * static_cast<size_t>(query.value_dim));
  scores_.resize(kPagePositions);
  max_.assign(heads, -std::numeric_limits<float>::infinity());
  sum_.assign(heads, 0.0F);
  std::fill_n(query.out, heads * static_cast<size_t>(query.value_dim), 0.0F);
  int next = 0;
  while (const int count = LoadBlock(query, &next)) {
    for (int head = 0; head < query.heads; ++head) AddBlock(query, count, head);
  }
  for (size_t head = 0; head < heads; ++head) {
    Scale(query.out + head * static_cast<size_t>(query.value_dim), 1.0F / sum_[head],
          static_cast<size_t>(query.value_dim));
  }
}

int Attention::LoadBlock(const Query& query, int* next) {
  const auto key_dim = static_cast<size_t>(query.keys->dim());
  const auto value_dim = static_cast<size_t>(query.value_dim);
  int count = 0;
  const auto load = [&](int32_t position, int rows) {
    const int32_t page = query.pages[static_cast<size_t>(position / kPagePositions)];
    const int offset = position % kPagePositions;
    const auto at = static_cast<size_t>(count);
    query.keys->Read(page, offset, rows, query.kv_head, keys_.data() + at * key_dim);
    if (query.values != nullptr) {
      query.values->Read(page, offset, rows, query.kv_head, values_.data() + at * value_dim);
    }
    count += rows;
  };
  if (query.selected == nullptr) {
    if (*next >= query.num_positions) return 0;
    const int rows = std::min(kPagePositions, query.num_positions - *next);
    load(*next, rows);
    *next += rows;
    return count;
  }
  // The chosen positions of one absolute block; a block may have none.
  if (*next >= query.num_selected) return 0;
  const int32_t block = query.selected[*next] / kPagePositions;
  while (*next < query.num_selected && query.selected[*next] / kPagePositions == block) {
    load(query.selected[(*next)++], 1);
  }
  return count;
}

void Attention::AddBlock(const Query& query, int count, int head) {
  const auto key_dim = static_cast<size_t>(query.keys->dim());
  const auto value_dim = static_cast<size_t>(query.value_dim);
  const auto h = static_cast<size_t>(head);
  const float* q = query.q + h * key_dim;
  float max = max_[h];
  for (size_t i = 0; i < static_cast<size_t>(count); ++i) {
    scores_[i] = query.scale * Dot(q, keys_.data() + i * key_dim, key_dim);
    max = std::max(max, scores_[i]);
  }
  float* out = query.out + h * value_dim;
  const float shrink = std::exp(max_[h] - max);
  if (shrink != 1.0F) Scale(out, shrink, value_dim);
  float sum = sum_[h] * shrink;
  const float* values = query.values == nullptr ? keys_.data() : values_.data();
  const size_t stride = query.values == nullptr ? key_dim : value_dim;
  for (size_t i = 0; i < static_cast<size_t>(count); ++i) {
    const float weight = std::exp(scores_[i] - max);
    sum += weight;
    AddScaled(out, values + i * stride, weight, value_dim);
  }
  max_[h] = max;
  sum_[h] = sum;
}

}  // namespace packtrain

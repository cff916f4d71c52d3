#include "worker/ops/attention.h"

#include <algorithm>
#include <limits>

#include "worker/ops/vector_math.h"

namespace packtrain {

static_assert(kScoreStride == kPagePositions);

void Attention::Run(const VectorOps& ops, const Query& query) {
  const auto rows = static_cast<size_t>(query.rows);
  const auto heads = static_cast<size_t>(query.heads);
  const size_t q_size = heads * static_cast<size_t>(query.keys->dim());
  const auto value_dim = static_cast<size_t>(query.value_dim);
  keys_.resize(size_t{kPagePositions} * static_cast<size_t>(query.keys->dim()));
  values_.resize(size_t{kPagePositions} * value_dim);
  scores_.resize(rows * heads * kScoreStride);
  queries_.resize(rows * q_size);
  for (size_t row = 0; row < rows; ++row) {
    std::copy_n(query.q + row * query.q_stride, q_size, queries_.data() + row * q_size);
  }
  max_.assign(rows * heads, -std::numeric_limits<float>::infinity());
  sum_.assign(rows * heads, 0.0F);
  results_.assign(rows * heads * value_dim, 0.0F);

  int next = 0;
  while (const int count = LoadBlock(ops, query, &next)) {
    if (query.selected != nullptr || next <= query.num_positions) {
      AddBlock(ops, query, count, 0, query.rows);
      continue;
    }
    for (int row = 0; row < query.rows; ++row) {
      const int visible = std::min(count, query.num_positions + row - (next - count));
      if (visible > 0) AddBlock(ops, query, visible, row, row + 1);
    }
  }
  for (size_t row = 0; row < rows; ++row) {
    float* out = query.out + row * query.out_stride;
    std::copy_n(results_.data() + row * heads * value_dim, heads * value_dim, out);
    for (size_t head = 0; head < heads; ++head) {
      Scale(out + head * value_dim, 1.0F / sum_[row * heads + head], value_dim);
    }
  }
}

int Attention::LoadBlock(const VectorOps& ops, const Query& query, int* next) {
  const auto key_dim = static_cast<size_t>(query.keys->dim());
  const auto value_dim = static_cast<size_t>(query.value_dim);
  int count = 0;
  const auto load = [&](int32_t position, int rows) {
    const int32_t page = query.pages[static_cast<size_t>(position / kPagePositions)];
    const int offset = position % kPagePositions;
    const auto at = static_cast<size_t>(count);
    query.keys->Read(page, offset, rows, query.kv_head, keys_.data() + at * key_dim, ops.decode);
    if (query.values != nullptr) {
      query.values->Read(page, offset, rows, query.kv_head, values_.data() + at * value_dim,
                         ops.decode);
    }
    count += rows;
  };
  if (query.selected == nullptr) {
    const int last = query.num_positions + query.rows - 1;
    if (*next >= last) return 0;
    const int rows = std::min(kPagePositions, last - *next);
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

void Attention::AddBlock(const VectorOps& ops, const Query& query, int count, int first, int last) {
  const auto key_dim = static_cast<size_t>(query.keys->dim());
  const auto value_dim = static_cast<size_t>(query.value_dim);
  const auto heads = static_cast<size_t>(query.heads);
  const size_t at = static_cast<size_t>(first) * heads;
  const bool shared = query.values == nullptr;
  ops.attend({.q = queries_.data() + at * key_dim,
              .queries = static_cast<size_t>(last - first) * heads,
              .keys = keys_.data(),
              .count = static_cast<size_t>(count),
              .key_dim = key_dim,
              .values = shared ? keys_.data() : values_.data(),
              .value_dim = value_dim,
              .value_stride = shared ? key_dim : value_dim,
              .scale = query.scale,
              .scores = scores_.data(),
              .max = max_.data() + at,
              .sum = sum_.data() + at,
              .out = results_.data() + at * value_dim});
}

}  // namespace packtrain

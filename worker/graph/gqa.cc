// Grouped-query attention, with the biases, norms and output gate that a model has.

#include <algorithm>
#include <cstring>

#include "worker/graph/layers.h"
#include "worker/ops/vector_math.h"

namespace packtrain {
namespace {

// x [rows, bias.size()] += bias
void AddBias(RunContext* run, const std::vector<float>& bias, float* x) {
  if (bias.empty()) return;
  run->ForRows(bias.size(),
               [&](size_t row, int) { Add(x + row * bias.size(), bias.data(), bias.size()); });
}

// Norms and rotates one head.
void FinishHead(const RunContext& run, size_t row, const std::vector<float>& norm, float* head) {
  const ModelConfig& config = run.config;
  const auto dim = static_cast<size_t>(config.gqa.key_dim);
  if (!norm.empty()) run.op.vector().rms_norm(head, norm.data(), config.rms_eps, dim, head);
  run.rope.Apply(config.rope.kind, row, head);
}

// Queries [rows, heads, key_dim]; gates [rows, heads, key_dim] if the model has them.
void ProjectQueries(RunContext* run, const GqaWeights& weights, float* q, float* gates) {
  const ModelConfig& config = run->config;
  const auto dim = static_cast<size_t>(config.gqa.key_dim);
  const auto heads = static_cast<size_t>(config.num_heads);
  const size_t stride = config.gqa.output_gate ? 2 * dim : dim;
  float* projected = run->extra.Get(run->rows() * heads * stride);
  Linear(run->op, weights.q, &run->x, projected);
  AddBias(run, weights.q_bias, projected);
  run->ForRows(heads * stride, [&](size_t row, int) {
    for (size_t i = row * heads; i < (row + 1) * heads; ++i) {
      // Each head's query is followed by its gate.
      std::memcpy(q + i * dim, projected + i * stride, dim * sizeof(float));
      if (stride > dim) {
        std::memcpy(gates + i * dim, projected + i * stride + dim, dim * sizeof(float));
      }
      FinishHead(*run, row, weights.q_norm, q + i * dim);
    }
  });
}

void CacheKeysAndValues(RunContext* run, int layer, const GqaWeights& weights) {
  const GqaConfig& gqa = run->config.gqa;
  const auto key_dim = static_cast<size_t>(gqa.key_dim);
  const auto value_dim = static_cast<size_t>(gqa.value_dim);
  const auto heads = static_cast<size_t>(gqa.num_kv_heads);
  float* k = run->kv.Get(run->rows() * heads * key_dim);
  float* v = run->extra.Get(run->rows() * heads * value_dim);
  LinearMany(run->op, {{weights.k, k}, {weights.v, v}}, &run->x);
  AddBias(run, weights.k_bias, k);
  AddBias(run, weights.v_bias, v);
  LayerCache& cache = run->cache->layer(layer);
  run->ForRows(heads * (key_dim + value_dim), [&](size_t row, int) {
    const auto [page, offset] = run->PageOf(row);
    for (size_t head = 0; head < heads; ++head) {
      float* key = k + (row * heads + head) * key_dim;
      FinishHead(*run, row, weights.k_norm, key);
      cache.k.Write(page, offset, static_cast<int>(head), key);
      cache.v.Write(page, offset, static_cast<int>(head), v + (row * heads + head) * value_dim);
    }
  });
}

}  // namespace

void RunGqa(RunContext* run, int layer, const LayerWeights& weights, const float* x, float* y) {
  const ModelConfig& config = run->config;
  const auto heads = static_cast<size_t>(config.num_heads);
  const auto kv_heads = static_cast<size_t>(config.gqa.num_kv_heads);
  const size_t group = heads / kv_heads;
  const auto key_dim = static_cast<size_t>(config.gqa.key_dim);
  const auto value_dim = static_cast<size_t>(config.gqa.value_dim);

  run->x.Reset(x, run->rows(), static_cast<size_t>(config.hidden_dim));
  float* q = run->q.Get(run->rows() * heads * key_dim);
  float* gates = run->gate.Get(run->rows() * heads * key_dim);
  ProjectQueries(run, weights.gqa, q, gates);
  CacheKeysAndValues(run, layer, weights.gqa);

  float* attended = run->attended.Get(run->rows() * heads * value_dim);
  run->times.Begin(OpKind::kAttention);
  const LayerCache& cache = run->cache->layer(layer);
  // Keys and values are converted once for a block of rows; where that leaves threads without
  // work, a KV head's queries are split.
  const std::vector<RowBlock>& blocks =
      run->CutRows(std::max<size_t>(1, kQueriesTogether / group), false);
  const auto threads = static_cast<size_t>(run->op.pool->num_threads());
  const size_t splits = std::clamp<size_t>(threads / (blocks.size() * kv_heads), 1, group);
  const size_t split_heads = (group + splits - 1) / splits;
  const size_t tasks = blocks.size() * kv_heads * splits;
  const size_t work = AttentionWork(*run, heads * (key_dim + value_dim));
  run->op.ParallelFor(tasks, work, [&](int task, int thread) {
    const RowBlock& block = blocks[static_cast<size_t>(task) / splits / kv_heads];
    const size_t kv_head = static_cast<size_t>(task) / splits % kv_heads;
    const size_t first = static_cast<size_t>(task) % splits * split_heads;
    if (first >= group) return;
    const size_t head = block.first * heads + kv_head * group + first;
    Attention::Query query;
    query.q = q + head * key_dim;
    query.q_stride = heads * key_dim;
    query.rows = static_cast<int>(block.rows);
    query.heads = static_cast<int>(std::min(split_heads, group - first));
    query.kv_head = static_cast<int>(kv_head);
    query.scale = config.attention_scale;
    query.pages = run->sequence_of[block.first]->pages;
    query.num_positions = run->positions[block.first] + 1;
    query.keys = &cache.k;
    query.values = &cache.v;
    query.value_dim = static_cast<int>(value_dim);
    query.out = attended + head * value_dim;
    query.out_stride = heads * value_dim;
    run->attention[static_cast<size_t>(thread)].Run(run->op.vector(), query);
  });
  if (config.gqa.output_gate) {
    const size_t size = heads * value_dim;
    run->ForRows(4 * size, [&](size_t row, int) {
      float* out = attended + row * size;
      run->op.vector().gate(out, gates + row * size, size, out);
    });
  }
  run->times.Begin(OpKind::kProjection);
  run->y.Reset(attended, run->rows(), heads * value_dim);
  Linear(run->op, weights.attn_output, &run->y, y);
}

}  // namespace packtrain

// Multi-head latent attention in its absorbed form: keys and values of all heads are one cached
// latent row, and queries are mapped into its space.

#include <algorithm>
#include <cstring>

#include "worker/graph/layers.h"

namespace packtrain {
namespace {

// Queries [rows, heads, nope + rope], rotated. Returns the activations of the low-rank queries.
float* ProjectQueries(RunContext* run, const MlaWeights& weights) {
  const ModelConfig& config = run->config;
  const auto heads = static_cast<size_t>(config.num_heads);
  const auto nope = static_cast<size_t>(config.mla.nope_dim);
  const size_t head_dim = nope + static_cast<size_t>(config.rope.dims);
  float* q = run->q.Get(run->rows() * heads * head_dim);
  if (weights.q_a.empty()) {
    Linear(run->op, weights.q_direct, &run->x, q);
  } else {
    const size_t rank = weights.q_a.rows;
    float* q_lora = run->q_lora.Get(run->rows() * rank);
    Linear(run->op, weights.q_a, &run->x, q_lora);
    run->ForRows(rank, [&](size_t row, int) {
      run->op.vector().rms_norm(q_lora + row * rank, weights.q_a_norm.data(), config.rms_eps, rank,
                                q_lora + row * rank);
    });
    run->y.Reset(q_lora, run->rows(), rank);
    Linear(run->op, weights.q_b, &run->y, q);
  }
  run->ForRows(heads * static_cast<size_t>(config.rope.dims), [&](size_t row, int) {
    for (size_t head = 0; head < heads; ++head) {
      run->rope.Apply(config.rope.kind, row, q + (row * heads + head) * head_dim + nope);
    }
  });
  return q;
}

// Stores [normed latent ; rotated key] of every row.
void CacheLatents(RunContext* run, int layer, const MlaWeights& weights) {
  const ModelConfig& config = run->config;
  const auto rank = static_cast<size_t>(config.mla.kv_lora_rank);
  const size_t dim = weights.kv_a.rows;
  float* kv = run->kv.Get(run->rows() * dim);
  Linear(run->op, weights.kv_a, &run->x, kv);
  PagedRows& cache = run->cache->layer(layer).latent;
  run->ForRows(dim, [&](size_t row, int) {
    float* latent = kv + row * dim;
    run->op.vector().rms_norm(latent, weights.kv_a_norm.data(), config.rms_eps, rank, latent);
    run->rope.Apply(config.rope.kind, row, latent + rank);
    const auto [page, offset] = run->PageOf(row);
    cache.Write(page, offset, 0, latent);
  });
}

// Queries in latent space: [rows, heads, latent + rope].
float* AbsorbQueries(RunContext* run, const MlaWeights& weights, const float* q) {
  const ModelConfig& config = run->config;
  const auto heads = static_cast<size_t>(config.num_heads);
  const auto nope = static_cast<size_t>(config.mla.nope_dim);
  const auto rope = static_cast<size_t>(config.rope.dims);
  const auto rank = static_cast<size_t>(config.mla.kv_lora_rank);
  const size_t entries = run->rows() * heads;
  float* absorbed = run->absorbed.Get(entries * (rank + rope));
  run->y.Reset(q, entries, nope, nope + rope);
  LinearPerHead(run->op, weights.k_b, heads, &run->y, absorbed, rank + rope);
  for (size_t i = 0; i < entries; ++i) {
    std::memcpy(absorbed + i * (rank + rope) + rank, q + i * (nope + rope) + nope,
                rope * sizeof(float));
  }
  return absorbed;
}

}  // namespace

void RunMla(RunContext* run, int layer, const LayerWeights& weights, const float* x, float* y) {
  const ModelConfig& config = run->config;
  const auto heads = static_cast<size_t>(config.num_heads);
  const auto rank = static_cast<size_t>(config.mla.kv_lora_rank);
  const size_t row_dim = rank + static_cast<size_t>(config.rope.dims);
  const auto value_dim = static_cast<size_t>(config.mla.value_dim);
  const MlaWeights& mla = weights.mla;

  run->x.Reset(x, run->rows(), static_cast<size_t>(config.hidden_dim));
  const float* q = ProjectQueries(run, mla);
  CacheLatents(run, layer, mla);
  if (config.layers[static_cast<size_t>(layer)].indexer == IndexerKind::kFull) {
    run->times.Begin(OpKind::kIndexer);
    RunIndexer(run, layer, weights.indexer, &run->x, &run->y);
    run->times.Begin(OpKind::kProjection);
  }
  const bool sparse = config.layers[static_cast<size_t>(layer)].indexer != IndexerKind::kNone;
  const float* absorbed = AbsorbQueries(run, mla, q);

  float* attended = run->attended.Get(run->rows() * heads * rank);
  const PagedRows& latents = run->cache->layer(layer).latent;
  run->times.Begin(OpKind::kAttention);
  // All heads share the cached rows; where that leaves threads without work they are split.
  const std::vector<RowBlock>& blocks =
      run->CutRows(std::max<size_t>(1, kQueriesTogether / heads), sparse);
  const auto threads = static_cast<size_t>(run->op.pool->num_threads());
  const size_t splits = std::clamp<size_t>(2 * threads / blocks.size(), 1, heads);
  const size_t split_heads = (heads + splits - 1) / splits;
  const size_t work = AttentionWork(*run, heads * (row_dim + rank));
  run->op.ParallelFor(blocks.size() * splits, work, [&](int task, int thread) {
    const RowBlock& block = blocks[static_cast<size_t>(task) / splits];
    const size_t first = static_cast<size_t>(task) % splits * split_heads;
    if (first >= heads) return;
    const size_t head = block.first * heads + first;
    Attention::Query query;
    query.q = absorbed + head * row_dim;
    query.q_stride = heads * row_dim;
    query.rows = static_cast<int>(block.rows);
    query.heads = static_cast<int>(std::min(split_heads, heads - first));
    query.scale = config.attention_scale;
    query.pages = run->sequence_of[block.first]->pages;
    query.num_positions = run->positions[block.first] + 1;
    if (sparse) {
      query.selected = run->selection.Row(block.first);
      query.num_selected = run->selection.counts[block.first];
    }
    query.keys = &latents;
    query.value_dim = static_cast<int>(rank);
    query.out = attended + head * rank;
    query.out_stride = heads * rank;
    run->attention[static_cast<size_t>(thread)].Run(run->op.vector(), query);
  });

  run->times.Begin(OpKind::kProjection);
  float* values = run->values.Get(run->rows() * heads * value_dim);
  run->y.Reset(attended, run->rows() * heads, rank);
  LinearPerHead(run->op, mla.v_b, heads, &run->y, values, value_dim);
  run->y.Reset(values, run->rows(), heads * value_dim);
  Linear(run->op, weights.attn_output, &run->y, y);
}

}  // namespace packtrain

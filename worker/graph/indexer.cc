// The lightning indexer of a full layer.

#include "worker/ops/indexer.h"

#include <algorithm>
#include <cmath>

#include "worker/graph/layers.h"
#include "worker/ops/vector_math.h"

namespace packtrain {
namespace {

// Of the index keys' LayerNorm; not in any file's metadata.
constexpr float kLayerNormEps = 1e-6F;
// Scores kept at a time.
constexpr size_t kMaxScores = size_t{1} << 22;

void CacheKeys(RunContext* run, int layer, const IndexerWeights& weights, Activations* x) {
  const IndexerConfig& indexer = run->config.indexer;
  const auto dim = static_cast<size_t>(indexer.head_dim);
  float* keys = run->extra.Get(run->rows() * dim);
  Linear(run->op, weights.k, x, keys);
  PagedRows& cache = run->cache->layer(layer).index_keys;
  run->ForRows(dim, [&](size_t row, int) {
    float* key = keys + row * dim;
    LayerNorm(key, weights.k_norm.data(), weights.k_norm_bias.data(), kLayerNormEps, dim, key);
    run->rope.Apply(indexer.rope, row, key);
    const auto [page, offset] = run->PageOf(row);
    cache.Write(page, offset, 0, key);
  });
}

struct IndexQueries {
  const float* q = nullptr;        // [rows, heads, head_dim], rotated
  const float* weights = nullptr;  // [rows, heads]
};

IndexQueries ProjectQueries(RunContext* run, const IndexerWeights& weights, Activations* x,
                            Activations* q_lora) {
  const IndexerConfig& indexer = run->config.indexer;
  const auto dim = static_cast<size_t>(indexer.head_dim);
  const auto heads = static_cast<size_t>(indexer.num_heads);
  float* q = run->gate.Get(run->rows() * heads * dim);
  float* head_weights = run->extra.Get(run->rows() * heads);
  Linear(run->op, weights.q_b, q_lora, q);
  Linear(run->op, weights.proj, x, head_weights);
  run->ForRows(heads * dim, [&](size_t row, int) {
    for (size_t h = 0; h < heads; ++h) {
      run->rope.Apply(indexer.rope, row, q + (row * heads + h) * dim);
    }
  });
  return {q, head_weights};
}

// Scores and selects for rows[0 .. count), each with scores of its own.
void SelectRows(RunContext* run, int layer, const IndexQueries& queries,
                std::span<const size_t> rows, size_t row_scores) {
  const IndexerConfig& indexer = run->config.indexer;
  const auto dim = static_cast<size_t>(indexer.head_dim);
  const auto heads = static_cast<size_t>(indexer.num_heads);
  const float scale = 1.0F / std::sqrt(static_cast<float>(dim * heads));
  const PagedRows& keys = run->cache->layer(layer).index_keys;
  float* scores = run->scores.Get(rows.size() * row_scores);
  const size_t pages = row_scores / kPagePositions;
  run->op.pool->ParallelFor(static_cast<int>(rows.size() * pages), [&](int task, int thread) {
    const size_t i = static_cast<size_t>(task) / pages;
    const size_t page = static_cast<size_t>(task) % pages;
    const size_t row = rows[i];
    const int visible = run->positions[row] + 1;
    const int first = static_cast<int>(page) * kPagePositions;
    if (first >= visible) return;
    float* scratch =
        run->thread_buffers[static_cast<size_t>(thread)].Get(kPagePositions * (dim + heads));
    IndexScores(run->op.vector(), keys, run->sequence_of[row]->pages[page],
                std::min(kPagePositions, visible - first), queries.q + row * heads * dim,
                queries.weights + row * heads, static_cast<int>(heads), scale, scratch,
                scores + i * row_scores + first);
  });
  Selection& selection = run->selection;
  const auto top_k = static_cast<size_t>(selection.top_k);
  run->op.pool->ParallelFor(static_cast<int>(rows.size()), [&](int task, int thread) {
    const auto i = static_cast<size_t>(task);
    const size_t row = rows[i];
    selection.counts[row] =
        SelectTop({scores + i * row_scores, static_cast<size_t>(run->positions[row]) + 1},
                  selection.top_k, run->thread_buffers[static_cast<size_t>(thread)].Get(row_scores),
                  selection.positions.data() + row * top_k);
  });
}

}  // namespace

void RunIndexer(RunContext* run, int layer, const IndexerWeights& weights, Activations* x,
                Activations* q_lora) {
  CacheKeys(run, layer, weights, x);
  Selection& selection = run->selection;
  std::vector<size_t>& sparse_rows = run->sparse_rows;
  sparse_rows.clear();
  int longest = 0;
  for (size_t row = 0; row < run->rows(); ++row) {
    selection.counts[row] = -1;
    if (run->positions[row] < selection.top_k) continue;  // all visible keys are chosen
    sparse_rows.push_back(row);
    longest = std::max(longest, run->positions[row] + 1);
  }
  if (sparse_rows.empty()) return;
  selection.positions.resize(run->rows() * static_cast<size_t>(selection.top_k));
  const IndexQueries queries = ProjectQueries(run, weights, x, q_lora);
  const size_t row_scores =
      static_cast<size_t>((longest + kPagePositions - 1) / kPagePositions) * kPagePositions;
  const size_t batch = std::max<size_t>(1, kMaxScores / row_scores);
  const std::span<const size_t> rows(sparse_rows);
  for (size_t first = 0; first < rows.size(); first += batch) {
    SelectRows(run, layer, queries, rows.subspan(first, std::min(batch, rows.size() - first)),
               row_scores);
  }
}

}  // namespace packtrain

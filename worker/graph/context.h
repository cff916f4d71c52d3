#pragma once

// What the layers of one stage share while a ubatch runs: the batch, the caches and scratch memory
// that is kept from step to step.

#include <cstdint>
#include <span>
#include <vector>

#include "common/model/config.h"
#include "worker/engine/experts.h"
#include "worker/engine/stage.h"
#include "worker/graph/op_times.h"
#include "worker/kv_cache/kv_cache.h"
#include "worker/ops/attention.h"
#include "worker/ops/experts.h"
#include "worker/ops/linear.h"
#include "worker/ops/rope.h"

namespace packtrain {

// A buffer that grows to what was ever asked for.
class Buffer {
 public:
  float* Get(size_t size) {
    if (values_.size() < size) values_.resize(size);
    return values_.data();
  }
  size_t bytes() const { return values_.size() * sizeof(float); }

 private:
  std::vector<float> values_;
};

// The keys that sparse attention looks at, per row, as the last full indexer layer chose.
struct Selection {
  int top_k = 0;                   // 0: the model attends to all
  std::vector<int32_t> positions;  // [rows, top_k], ascending, counts[row] of them are valid
  std::vector<int> counts;         // -1: all visible positions

  const int32_t* Row(size_t row) const {
    return counts.empty() || counts[row] < 0 ? nullptr
                                             : positions.data() + row * static_cast<size_t>(top_k);
  }
};

// Rows of one sequence that are computed together.
struct RowBlock {
  size_t first = 0, rows = 0;
};

struct RunContext {
  RunContext(const ModelConfig& model, const OpContext& ops)
      : config(model), op(ops), rope(model.rope) {
    attention.resize(static_cast<size_t>(ops.pool->num_threads()));
    thread_buffers.resize(static_cast<size_t>(ops.pool->num_threads()));
    selection.top_k = model.indexer.top_k;
  }

  const ModelConfig& config;
  OpContext op;
  Rope rope;
  KvCache* cache = nullptr;
  RecurrentState* state = nullptr;
  LocalExperts* local_experts = nullptr;
  ExpertsClient* remote_experts = nullptr;

  // The batch, row by row.
  std::span<const UbatchSequence> sequences;
  std::vector<int32_t> positions;
  std::vector<const UbatchSequence*> sequence_of;
  size_t rows() const { return positions.size(); }
  Selection selection;
  OpTimes times;

  // Sets the batch and its rotation angles.
  void SetBatch(const Ubatch& ubatch);
  std::pair<int32_t, int> PageOf(size_t row) const {  // page id and offset of the row's position
    const int32_t position = positions[row];
    return {sequence_of[row]->pages[static_cast<size_t>(position / kPagePositions)],
            position % kPagePositions};
  }
  // Calls task(row, thread) for every row, each a pass over `row_values` values.
  void ForRows(size_t row_values, absl::FunctionRef<void(size_t, int)> task) const {
    op.ParallelFor(rows(), rows() * row_values * kValueWork,
                   [&](int row, int thread) { task(static_cast<size_t>(row), thread); });
  }
  // Cuts the batch into runs of at most `max_rows` rows of one sequence; with `sparse`, rows that
  // attend to a selection stand alone.
  const std::vector<RowBlock>& CutRows(size_t max_rows, bool sparse);

  std::vector<Attention> attention;  // per thread
  std::vector<Buffer> thread_buffers;
  std::vector<size_t> sparse_rows;
  std::vector<RowBlock> row_blocks;
  Activations x, y;
  Buffer normed, layer_out, shared, router_logits, expert_weights;
  std::vector<int32_t> expert_ids;
  Buffer q_lora, q, kv, absorbed, attended, values, gate, extra, scores;
};

// Queries of one KV head that are computed together: enough that converting the keys is a small
// part of it.
inline constexpr size_t kQueriesTogether = 32;

// The work of all rows' attention, where a position costs `position_work` multiply-adds.
size_t AttentionWork(const RunContext& run, size_t position_work);

}  // namespace packtrain

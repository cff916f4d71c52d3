#include "common/model/buffers.h"

#include <algorithm>

#include "common/model/step.h"

namespace packtrain {
namespace {

constexpr uint64_t kMiB = uint64_t{1} << 20;

uint64_t U(int value) { return static_cast<uint64_t>(value); }

// Rows that a CPU stage works on at once within a ubatch: scratch of attention and feed-forward is
// as large as that, however long the ubatch.
constexpr int kCpuScratchRows = 512;

// f32 values of scratch per row on a CPU: the widest of the model's kinds of layers.
uint64_t CpuScratchValues(const ModelConfig& c) {
  uint64_t widest = 0;
  for (const LayerConfig& layer : c.layers) {
    uint64_t attention = 0;
    switch (layer.attention) {
      case AttentionKind::kMla:
        attention =
            U(c.mla.q_lora_rank) + U(c.num_heads) * U(2 * c.mla.nope_dim + 2 * c.rope.dims +
                                                      2 * c.mla.kv_lora_rank + c.mla.value_dim);
        if (layer.indexer != IndexerKind::kNone) {
          attention += U(c.indexer.num_heads) * U(c.indexer.head_dim + 1);
        }
        break;
      case AttentionKind::kGqa:
        attention = U(c.num_heads) * U((c.gqa.output_gate ? 2 : 1) * c.gqa.key_dim) +
                    U(c.gqa.num_kv_heads) * U(c.gqa.key_dim + c.gqa.value_dim) +
                    U(c.num_heads) * U(c.gqa.value_dim);
        break;
      case AttentionKind::kGatedDeltaNet:
        attention = 2 * U(c.delta_net.conv_channels()) + 3 * U(c.delta_net.inner_dim());
        break;
    }
    uint64_t ffn = 2 * U(c.dense_dim);
    if (layer.ffn == FfnKind::kMoe) {
      ffn = 2 * U(c.moe.shared_dim) + U(c.moe.num_experts) +
            U(c.moe.top_k) * U(2 * c.moe.expert_dim + 2 * c.hidden_dim);
    }
    widest = std::max({widest, attention, ffn});
  }
  return widest;
}

uint64_t CpuBufferBytes(const ModelFacts& model, const DeploymentShape& shape,
                        const StageDuties& duties) {
  const ModelConfig& c = model.config;
  const uint64_t rows = U(shape.max_tokens);
  uint64_t bytes = rows * U(3 * c.hidden_dim + c.indexer.top_k) * 4;
  bytes += std::min(rows, U(kCpuScratchRows)) * CpuScratchValues(c) * 4;
  if (duties.has_head) bytes += U(std::max(shape.num_slots, 64)) * U(c.vocab_size) * 4;
  return bytes;
}

// A CUDA stage takes scratch memory for all rows of a ubatch, as a stack (worker/device/cuda). Rows
// that products read are there in bf16, some in f32 too.
constexpr uint64_t kF32 = 4, kBf16 = 2, kBoth = kF32 + kBf16;
constexpr uint64_t kUnpackedBytes = 128 * kMiB;            // weights of a product in bf16
constexpr uint64_t kScoreBytes = (uint64_t{1} << 24) * 4;  // of the indexer, most at a time
constexpr int kDecodeRows = 8;                             // at most, in a decode step
constexpr uint64_t kDecodeSplits = 32;                     // of the context, in attention

uint64_t CudaIndexerBytes(const ModelConfig& c, uint64_t rows, uint64_t positions) {
  const IndexerConfig& x = c.indexer;
  uint64_t bytes = rows * U(x.head_dim) * kF32;
  if (positions <= U(x.top_k)) return bytes;
  bytes += rows * U(x.num_heads) * U(x.head_dim + 1) * kF32;
  return bytes + std::min(kScoreBytes, rows * positions * kF32);
}

uint64_t CudaAttentionBytes(const ModelConfig& c, const LayerConfig& layer, uint64_t rows,
                            uint64_t positions) {
  switch (layer.attention) {
    case AttentionKind::kMla: {
      const uint64_t windows = (rows + kMlaRows - 1) / kMlaRows;
      const uint64_t heads = (rows + windows - 1) / windows * U(c.num_heads),
                     rank = U(c.mla.kv_lora_rank), row_dim = rank + U(c.rope.dims),
                     nope = U(c.mla.nope_dim), value = U(c.mla.value_dim);
      const uint64_t window = heads * (nope + U(c.rope.dims) + row_dim) * kF32 +
                              heads * std::max(nope, rank + value) * kBf16;
      const uint64_t indexer =
          layer.indexer == IndexerKind::kFull ? CudaIndexerBytes(c, rows, positions) : 0;
      return rows * (row_dim * kF32 + U(c.mla.q_lora_rank) * kBoth) + std::max(indexer, window);
    }
    case AttentionKind::kGqa: {
      const uint64_t heads = rows * U(c.num_heads), dim = U(c.gqa.key_dim),
                     value = U(c.gqa.value_dim);
      return heads * dim * (c.gqa.output_gate ? 3 : 2) * kF32 +
             rows * U(c.gqa.num_kv_heads) * (dim + value) * kF32 + heads * value * kBoth;
    }
    case AttentionKind::kGatedDeltaNet: {
      const DeltaNetConfig& d = c.delta_net;
      return rows *
                 (U(DeltaNetWidth(d)) + U(d.conv_channels()) +
                  2 * U(d.inner_dim() + d.num_value_heads)) *
                 kF32 +
             rows * U(d.inner_dim()) * kBf16;
    }
  }
  return 0;
}

// A decode step: few rows, but partial results of attention for every split of the context.
uint64_t CudaDecodeBytes(const ModelConfig& c, const LayerConfig& layer, uint64_t rows) {
  if (layer.attention == AttentionKind::kGatedDeltaNet) return 0;
  const bool mla = layer.attention == AttentionKind::kMla;
  const int key = mla ? c.mla.nope_dim + c.mla.kv_lora_rank + 2 * c.rope.dims : c.gqa.key_dim,
            value = mla ? c.mla.kv_lora_rank : c.gqa.value_dim;
  return rows * U(c.num_heads) *
         (U(key) * kF32 + U(value) * kBoth + kDecodeSplits * U(value + 2) * kF32);
}

uint64_t CudaFeedForwardBytes(const ModelConfig& c, const LayerConfig& layer, uint64_t rows) {
  const auto dense = [&](int inner) { return rows * U(inner) * (2 * kF32 + kBf16); };
  if (layer.ffn == FfnKind::kDense) return dense(c.dense_dim);
  const MoeConfig& moe = c.moe;
  const uint64_t pairs = rows * U(moe.top_k);
  uint64_t bytes = rows * U(moe.num_experts) * kF32 + pairs * 2 * 8;  // router, picks, their order
  bytes +=
      pairs * (U(moe.expert_dim) * kBf16 + std::max(2 * U(moe.expert_dim), U(c.hidden_dim)) * kF32);
  if (moe.shared_dim > 0) bytes += rows * U(c.hidden_dim + 1) * kF32 + dense(moe.shared_dim);
  return bytes;
}

uint64_t CudaBufferBytes(const ModelFacts& model, const DeploymentShape& shape,
                         const StageDuties& duties) {
  const ModelConfig& c = model.config;
  const uint64_t rows = U(shape.max_tokens);
  const uint64_t positions = std::min(U(c.context_length), U(shape.num_pages) * U(kPagePositions));
  uint64_t bytes = rows * U(2 * c.hidden_dim + c.rope.dims + c.indexer.top_k + 2) * 4;
  bytes += U(shape.num_slots) * (positions / U(kPagePositions)) * 4;  // page tables
  if (duties.embeds) bytes += rows * (model.weights.embedding / U(std::max(c.vocab_size, 1)));
  if (duties.has_head) bytes += U(kDecodeRows) * U(c.vocab_size) * 4;
  if (shape.max_tokens > kDecodeRows) bytes += kUnpackedBytes;
  uint64_t widest = 0;
  for (const LayerConfig& layer : c.layers) {
    widest = std::max({widest, CudaAttentionBytes(c, layer, rows, positions),
                       CudaFeedForwardBytes(c, layer, rows),
                       CudaDecodeBytes(c, layer, std::min(rows, U(kDecodeRows)))});
  }
  return bytes + rows * U(c.hidden_dim) * kBoth + widest;
}

}  // namespace

uint64_t StageBufferBytes(const ModelFacts& model, const DeploymentShape& shape,
                          const StageDuties& duties) {
  return duties.device == DeviceKind::kCuda ? CudaBufferBytes(model, shape, duties)
                                            : CpuBufferBytes(model, shape, duties);
}

int DeltaNetWidth(const DeltaNetConfig& delta) {
  return std::max(delta.conv_channels(), delta.num_value_heads * (delta.head_dim + kPagePositions));
}

int ExpertRingSlots(int max_tokens) { return std::clamp(max_tokens / 512, 1, 6) + 2; }

uint64_t ExpertRingBytes(const ModelFacts& model, const DeploymentShape& shape) {
  if (!shape.Streams(shape.max_tokens)) return 0;
  // A slot holds as many whole experts of a matrix as fit a piece, at least one.
  uint64_t matrix = 0;
  for (const LayerWeightBytes& layer : model.weights.layers) {
    matrix = std::max(matrix, layer.experts / 3);
  }
  const uint64_t expert =
      std::max<uint64_t>(matrix / U(std::max(model.config.moe.num_experts, 1)), 1);
  const uint64_t fit = std::max<uint64_t>(kExpertPieceBytes / expert, 1);
  return U(ExpertRingSlots(shape.max_tokens)) * std::min(matrix, fit * expert);
}

}  // namespace packtrain

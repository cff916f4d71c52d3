#include "coordinator/placement/work.h"

#include <algorithm>
#include <cmath>

namespace packtrain {

double CacheReadBytes(const ModelConfig& config, KvCacheType kv_cache, int layer, int depth) {
  LayerConfig kind = config.layers[static_cast<size_t>(layer)];
  const double with_keys = static_cast<double>(KvBytesPerPosition(config, kind, kv_cache));
  const double state = static_cast<double>(RecurrentBytes(config, kind));
  const bool sparse = kind.indexer != IndexerKind::kNone;
  kind.indexer = IndexerKind::kNone;
  const double rows = static_cast<double>(KvBytesPerPosition(config, kind, kv_cache));
  const double attended = sparse ? std::min(depth, config.indexer.top_k) : depth;
  return rows * attended + (with_keys - rows) * depth + 2 * state;
}

double AttentionFlops(const ModelConfig& config, int layer, double visible) {
  const LayerConfig& kind = config.layers[static_cast<size_t>(layer)];
  double choice = 0;
  if (kind.indexer != IndexerKind::kNone && visible > config.indexer.top_k) {
    if (kind.indexer == IndexerKind::kFull) {
      choice = 2.0 * visible * config.indexer.num_heads * config.indexer.head_dim;
    }
    visible = config.indexer.top_k;
  }
  switch (kind.attention) {
    case AttentionKind::kMla:
      return choice +
             2.0 * visible * config.num_heads * (2 * config.mla.kv_lora_rank + config.rope.dims);
    case AttentionKind::kGqa:
      return 2.0 * visible * config.num_heads * (config.gqa.key_dim + config.gqa.value_dim);
    case AttentionKind::kGatedDeltaNet:
      return 8.0 * config.delta_net.inner_dim() * config.delta_net.head_dim;
  }
  return 0;
}

double AttentionScores(const ModelConfig& config, int layer, double visible) {
  const LayerConfig& kind = config.layers[static_cast<size_t>(layer)];
  if (kind.attention == AttentionKind::kGatedDeltaNet) return 0;
  if (kind.indexer != IndexerKind::kNone) visible = std::min<double>(visible, config.indexer.top_k);
  return visible * config.num_heads;
}

double BetweenBytes(const ModelConfig& config, int layer) {
  const LayerConfig& kind = config.layers[static_cast<size_t>(layer)];
  const double hidden = config.hidden_dim, heads = config.num_heads;
  // Two norms: residual and its increment in, their sum out, and the result as f32 and as bf16.
  double bytes = 2 * 18 * hidden;
  switch (kind.attention) {
    case AttentionKind::kMla:  // queries rotated, and both of their parts moved; the two norms
      bytes += heads * (6.0 * config.mla.nope_dim + 16.0 * config.rope.dims) +
               10.0 * config.mla.q_lora_rank + 14.0 * (config.mla.kv_lora_rank + config.rope.dims);
      break;
    case AttentionKind::kGqa:  // norms, rotations, the cache; what was attended to, as bf16
      bytes += heads * (16.0 * config.gqa.key_dim + 6.0 * config.gqa.value_dim) +
               config.gqa.num_kv_heads * (22.0 * config.gqa.key_dim + 6.0 * config.gqa.value_dim);
      break;
    case AttentionKind::kGatedDeltaNet:  // the convolution, the gated norm
      bytes += 8.0 * config.delta_net.conv_channels() + 14.0 * config.delta_net.inner_dim();
      break;
  }
  // gate and up in, their product out as bf16; experts' sums; the shared expert added.
  if (kind.ffn == FfnKind::kDense) return bytes + 10.0 * config.dense_dim;
  return bytes + config.moe.top_k * (10.0 * config.moe.expert_dim + 4 * hidden) + 4 * hidden +
         (config.moe.shared_dim > 0 ? 10.0 * config.moe.shared_dim + 12 * hidden : 0);
}

double TouchedShare(const ModelConfig& config, int rows) {
  if (config.moe.num_experts == 0) return 0;
  return 1 - std::pow(1 - static_cast<double>(config.moe.top_k) / config.moe.num_experts, rows);
}

}  // namespace packtrain

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

double TouchedShare(const ModelConfig& config, int rows) {
  if (config.moe.num_experts == 0) return 0;
  return 1 - std::pow(1 - static_cast<double>(config.moe.top_k) / config.moe.num_experts, rows);
}

}  // namespace packtrain

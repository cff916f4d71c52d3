#include "common/model/kv_layout.h"

namespace packtrain {

size_t KvBytes(KvCacheType type, size_t values) {
  const size_t blocks = (values + 31) / 32;
  switch (type) {
    case KvCacheType::kF32:
      return values * 4;
    case KvCacheType::kF16:
      return values * 2;
    case KvCacheType::kQ8_0:
      return blocks * 34;
    case KvCacheType::kQ4_1:
      return blocks * 20;
  }
  return 0;
}

size_t KvBytesPerPosition(const ModelConfig& config, const LayerConfig& layer, KvCacheType type) {
  size_t bytes = 0;
  switch (layer.attention) {
    case AttentionKind::kMla:
      bytes = KvBytes(type, static_cast<size_t>(config.mla.kv_lora_rank + config.rope.dims));
      break;
    case AttentionKind::kGqa:
      bytes = static_cast<size_t>(config.gqa.num_kv_heads) *
              (KvBytes(type, static_cast<size_t>(config.gqa.key_dim)) +
               KvBytes(type, static_cast<size_t>(config.gqa.value_dim)));
      break;
    case AttentionKind::kGatedDeltaNet:
      break;
  }
  if (layer.indexer == IndexerKind::kFull) {
    bytes += KvBytes(type, static_cast<size_t>(config.indexer.head_dim));
  }
  return bytes;
}

size_t RecurrentBytes(const ModelConfig& config, const LayerConfig& layer) {
  if (layer.attention != AttentionKind::kGatedDeltaNet) return 0;
  const DeltaNetConfig& delta = config.delta_net;
  const size_t conv =
      static_cast<size_t>(delta.conv_kernel - 1) * static_cast<size_t>(delta.conv_channels());
  const size_t state = static_cast<size_t>(delta.inner_dim()) * static_cast<size_t>(delta.head_dim);
  return (conv + state) * sizeof(float);
}

}  // namespace packtrain

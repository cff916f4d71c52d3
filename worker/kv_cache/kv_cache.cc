#include "worker/kv_cache/kv_cache.h"

#include <algorithm>

#include "common/base/check.h"

namespace packtrain {

KvCache::KvCache(const ModelConfig& config, int first, int last, KvCacheType type, int num_pages)
    : first_(first) {
  for (int i = first; i < last; ++i) {
    const LayerConfig& kinds = config.layers[static_cast<size_t>(i)];
    LayerCache layer;
    if (kinds.attention == AttentionKind::kMla) {
      layer.latent = PagedRows(type, num_pages, 1, config.mla.kv_lora_rank + config.rope.dims);
    } else if (kinds.attention == AttentionKind::kGqa) {
      const GqaConfig& gqa = config.gqa;
      layer.k = PagedRows(type, num_pages, gqa.num_kv_heads, gqa.key_dim);
      layer.v = PagedRows(type, num_pages, gqa.num_kv_heads, gqa.value_dim);
    }
    if (kinds.indexer == IndexerKind::kFull) {
      layer.index_keys = PagedRows(type, num_pages, 1, config.indexer.head_dim);
    }
    layers_.push_back(std::move(layer));
  }
}

void KvCache::CopyPage(int32_t from, int32_t to) {
  for (LayerCache& layer : layers_) {
    for (PagedRows* rows : {&layer.latent, &layer.k, &layer.v, &layer.index_keys}) {
      if (rows->bytes() > 0) rows->CopyPage(from, to);
    }
  }
}

uint64_t KvCache::bytes() const {
  uint64_t sum = 0;
  for (const LayerCache& layer : layers_) {
    sum += layer.latent.bytes() + layer.k.bytes() + layer.v.bytes() + layer.index_keys.bytes();
  }
  return sum;
}

RecurrentState::RecurrentState(const ModelConfig& config, int first, int last, int num_slots,
                               int num_snapshots)
    : num_slots_(num_slots), num_snapshots_(num_snapshots), first_(first) {
  const DeltaNetConfig& delta = config.delta_net;
  conv_floats_ = static_cast<size_t>(std::max(0, delta.conv_kernel - 1)) *
                 static_cast<size_t>(delta.conv_channels());
  for (int i = first; i < last; ++i) {
    offsets_.push_back(slot_floats_);
    slot_floats_ += RecurrentBytes(config, config.layers[static_cast<size_t>(i)]) / sizeof(float);
  }
  memory_.resize(static_cast<size_t>(num_slots + num_snapshots) * slot_floats_);
}

float* RecurrentState::conv(int slot, int layer) {
  CHECK(slot >= 0 && slot < num_slots_);
  return Slot(slot) + offsets_[static_cast<size_t>(layer - first_)];
}

float* RecurrentState::state(int slot, int layer) { return conv(slot, layer) + conv_floats_; }

void RecurrentState::Reset(int slot) {
  CHECK(slot >= 0 && slot < num_slots_);
  std::fill_n(Slot(slot), slot_floats_, 0.0F);
}

void RecurrentState::Save(int slot, int snapshot) {
  CHECK(slot >= 0 && slot < num_slots_ && snapshot >= 0 && snapshot < num_snapshots_);
  std::copy_n(Slot(slot), slot_floats_, Slot(num_slots_ + snapshot));
}

void RecurrentState::Restore(int snapshot, int slot) {
  CHECK(slot >= 0 && slot < num_slots_ && snapshot >= 0 && snapshot < num_snapshots_);
  std::copy_n(Slot(num_slots_ + snapshot), slot_floats_, Slot(slot));
}

}  // namespace packtrain

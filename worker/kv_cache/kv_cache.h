#pragma once

// The KV cache and the recurrent state of the layers that one stage carries.

#include <cstdint>
#include <vector>

#include "common/model/config.h"
#include "common/model/kv_layout.h"
#include "worker/kv_cache/paged_rows.h"

namespace packtrain {

// Of one layer; kinds that the layer does not cache are empty.
struct LayerCache {
  PagedRows latent;      // MLA: [latent ; rotated key], one head
  PagedRows k, v;        // GQA
  PagedRows index_keys;  // full indexer layers
};

class KvCache {
 public:
  // For config.layers[first .. last).
  KvCache(const ModelConfig& config, int first, int last, KvCacheType type, int num_pages);

  LayerCache& layer(int layer) { return layers_[static_cast<size_t>(layer - first_)]; }
  void CopyPage(int32_t from, int32_t to);
  uint64_t bytes() const;

 private:
  int first_;
  std::vector<LayerCache> layers_;
};

// Recurrent state: per slot the convolution's last inputs and the matrix state of every Gated
// DeltaNet layer, and snapshots of whole slots.
class RecurrentState {
 public:
  RecurrentState(const ModelConfig& config, int first, int last, int num_slots, int num_snapshots);

  // The convolution's inputs at the last conv_kernel - 1 positions, oldest first: [.., channels].
  float* conv(int slot, int layer);
  // [value heads, head_dim of keys, head_dim of values].
  float* state(int slot, int layer);

  void Reset(int slot);
  void Save(int slot, int snapshot);
  void Restore(int snapshot, int slot);
  uint64_t bytes() const { return memory_.size() * sizeof(float); }

 private:
  float* Slot(int index) { return memory_.data() + static_cast<size_t>(index) * slot_floats_; }

  int num_slots_, num_snapshots_, first_;
  size_t conv_floats_ = 0, slot_floats_ = 0;
  std::vector<size_t> offsets_;  // of each layer within a slot
  std::vector<float> memory_;    // slots, then snapshots
};

}  // namespace packtrain

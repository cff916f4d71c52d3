#pragma once

// How much a KV cache takes: read by the planner's bill and by the cache itself.

#include <cstddef>
#include <cstdint>

#include "common/model/config.h"

namespace packtrain {

enum class KvCacheType : uint8_t { kF32, kF16, kQ8_0, kQ4_1 };

// Bytes of `values` numbers stored side by side. Quantised types have blocks of 32: a shorter rest
// is padded to a block.
size_t KvBytes(KvCacheType type, size_t values);

// Bytes that one position takes in a layer, over all it caches.
size_t KvBytesPerPosition(const ModelConfig& config, const LayerConfig& layer, KvCacheType type);

// Bytes of recurrent state that one sequence takes in a layer; 0 for layers without.
size_t RecurrentBytes(const ModelConfig& config, const LayerConfig& layer);

}  // namespace packtrain

#pragma once

// What a step makes a layer read and compute besides its weights, and which experts it touches.

#include "common/model/config.h"
#include "common/model/kv_layout.h"

namespace packtrain {

// Bytes of KV cache, indexer keys and recurrent state that one token reads in a layer, with
// `depth` positions in front of it. A recurrent state is read and written.
double CacheReadBytes(const ModelConfig& config, KvCacheType kv_cache, int layer, int depth);

// Multiplications and additions of attention itself, per token that sees `visible` positions; with
// those of choosing among them where attention is sparse.
double AttentionFlops(const ModelConfig& config, int layer, double visible);

// Scores of one token that sees `visible` positions: of all heads, each a position's with a query.
double AttentionScores(const ModelConfig& config, int layer, double visible);

// Bytes that the kernels between a GPU's products read and write for one row of a long ubatch.
double BetweenBytes(const ModelConfig& config, int layer);

// The share of a layer's routed experts that `rows` tokens touch, on average, if the router picks
// evenly; 0 without experts.
double TouchedShare(const ModelConfig& config, int rows);

}  // namespace packtrain

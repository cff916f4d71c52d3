#pragma once

// One decoder layer on the CPU, put together from its kinds of attention and feed-forward.

#include "absl/status/status.h"
#include "worker/graph/context.h"
#include "worker/graph/layer_weights.h"

namespace packtrain {

// Each reads x [rows, hidden_dim] (normed) and writes y [rows, hidden_dim].
void RunMla(RunContext* run, int layer, const LayerWeights& weights, const float* x, float* y);
void RunGqa(RunContext* run, int layer, const LayerWeights& weights, const float* x, float* y);
void RunDeltaNet(RunContext* run, int layer, const LayerWeights& weights, const float* x, float* y);

// Scores the cached keys and sets run->selection. Also stores the rows' own index keys.
//   x [rows, hidden_dim] normed, q_lora [rows, q_lora_rank] normed
void RunIndexer(RunContext* run, int layer, const IndexerWeights& weights, Activations* x,
                Activations* q_lora);

void RunFfn(RunContext* run, const FfnWeights& weights, Activations* x, float* y);
// Routed experts plus shared expert. Errors: those of the experts client.
absl::Status RunMoe(RunContext* run, int layer, const MoeWeights& weights, const float* x,
                    float* y);

class DecoderLayer {
 public:
  DecoderLayer(int layer, LayerWeights weights) : layer_(layer), weights_(std::move(weights)) {}

  // hidden [rows, hidden_dim] is updated.
  absl::Status Run(RunContext* run, float* hidden);

 private:
  int layer_;
  LayerWeights weights_;
};

}  // namespace packtrain

#pragma once

// The weights of layers, bound from a weight source: matrices are borrowed in the file's type,
// vectors are small and converted to f32.

#include <vector>

#include "absl/status/status.h"
#include "common/model/config.h"
#include "common/model/tensors.h"
#include "common/model/weight_source.h"
#include "common/tensor/matrix_view.h"
#include "worker/kernels/cpu/kernels.h"
#include "worker/ops/experts.h"

namespace packtrain {

struct MlaWeights {
  MatrixView q_a, q_b, q_direct, kv_a, k_b, v_b;
  std::vector<float> q_a_norm, kv_a_norm;
};

struct IndexerWeights {
  MatrixView q_b, k, proj;
  std::vector<float> k_norm, k_norm_bias;
};

struct GqaWeights {
  MatrixView q, k, v;
  std::vector<float> q_bias, k_bias, v_bias, q_norm, k_norm;  // empty: the model has none
};

struct DeltaNetWeights {
  MatrixView qkv, gate, beta, alpha, out;
  std::vector<float> conv;       // [channels, kernel]
  std::vector<float> conv_taps;  // the same as [kernel, channels]
  std::vector<float> dt_bias, a, norm;
};

struct FfnWeights {
  MatrixView gate, up, down;
};

struct MoeWeights {
  MatrixView router;
  std::vector<float> router_bias;
  FfnWeights shared;
  std::vector<float> shared_router;  // empty: the shared expert is not gated
};

// Only the parts of the layer's kinds are filled.
struct LayerWeights {
  std::vector<float> attn_norm, ffn_norm;
  MlaWeights mla;
  IndexerWeights indexer;
  GqaWeights gqa;
  DeltaNetWeights delta_net;
  MatrixView attn_output;
  FfnWeights dense;
  MoeWeights moe;
};

// Looks tensors up; the first failure is kept and later calls return nothing, so that callers bind
// everything and check once.
class WeightBinder {
 public:
  WeightBinder(const ModelConfig& config, const ModelTensors& tensors, const WeightSource& source,
               const CpuKernels& kernels)
      : config_(config), tensors_(tensors), source_(source), kernels_(kernels) {}

  // Errors: INVALID_ARGUMENT for a type without a kernel; what the source says.
  const absl::Status& status() const { return status_; }
  uint64_t bytes() const { return bytes_; }  // of all that was bound

  // Empty if the file has no such tensor.
  MatrixView Matrix(TensorRole role, int layer);
  std::vector<float> Vector(TensorRole role, int layer);

  LayerWeights Layer(int layer);  // without routed experts
  ExpertWeights Experts(int layer);

 private:
  void BindMla(int layer, LayerWeights* weights);
  void BindGqa(int layer, GqaWeights* gqa);
  void BindDeltaNet(int layer, DeltaNetWeights* delta);
  void BindMoe(int layer, MoeWeights* moe);

  const ModelConfig& config_;
  const ModelTensors& tensors_;
  const WeightSource& source_;
  const CpuKernels& kernels_;
  absl::Status status_;
  uint64_t bytes_ = 0;
};

}  // namespace packtrain

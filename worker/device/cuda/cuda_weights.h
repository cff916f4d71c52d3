#pragma once

// A model's weights on a CUDA device, in the file's types.

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "common/tensor/matrix_view.h"
#include "worker/device/cuda/cuda_memory.h"
#include "worker/engine/stage.h"
#include "worker/graph/layer_weights.h"
#include "worker/kernels/cuda/kernels.h"

namespace packtrain {

// `rows` rows of `cols` weights in device memory. Empty: the model has no such tensor.
struct DeviceMatrix {
  const cuda::WeightKernels* kernels = nullptr;
  const uint8_t* data = nullptr;
  int rows = 0;
  int cols = 0;

  bool empty() const { return kernels == nullptr; }
  size_t row_bytes() const { return RowBytes(kernels->type, static_cast<size_t>(cols)); }
};

struct DeviceFfn {
  DeviceMatrix gate, up, down;
};

// Routed experts, one behind the other; as ExpertWeights of worker/ops. Streamed ones have no
// address: a piece at a time is on the device.
struct DeviceExperts {
  DeviceFfn ffn;
  int num_experts = 0;
  int expert_dim = 0;
  int row_stride = 0;  // rows of gate and up from one expert to the next
};

// As LayerWeights of worker/graph.
struct DeviceLayer {
  const float* attn_norm = nullptr;
  const float* ffn_norm = nullptr;
  DeviceMatrix q_a, q_b, q_direct, kv_a, k_b, v_b;  // MLA
  const float* q_a_norm = nullptr;
  const float* kv_a_norm = nullptr;
  DeviceMatrix index_q_b, index_k, index_proj;
  const float* index_k_norm = nullptr;
  const float* index_k_norm_bias = nullptr;
  DeviceMatrix q, k, v;  // GQA
  const float* q_bias = nullptr;
  const float* k_bias = nullptr;
  const float* v_bias = nullptr;
  const float* q_norm = nullptr;
  const float* k_norm = nullptr;
  DeviceMatrix delta_qkv, delta_gate, delta_beta, delta_alpha, delta_out;
  const float* delta_conv = nullptr;
  const float* delta_dt_bias = nullptr;
  const float* delta_a = nullptr;
  const float* delta_norm = nullptr;
  DeviceMatrix attn_output;
  DeviceFfn dense, shared;
  DeviceMatrix router;
  const float* router_bias = nullptr;
  DeviceMatrix shared_router;  // one row
  DeviceExperts experts;       // empty: served by somebody else
};

// Collects what a stage needs, then uploads it through page-locked memory.
class WeightUploader {
 public:
  // Sets type and shape of the target at once and its address in Upload; the target must stay where
  // it is until then. Tensors that overlap in the source (parts of a fused one) are stored once.
  void Add(const MatrixView& view, DeviceMatrix* target);
  void Add(const std::vector<float>& values, const float** target);
  void Add(const LayerWeights& weights, DeviceLayer* target);
  void Add(const ExpertWeights& weights, DeviceExperts* target);

  // Device bytes that Upload takes. Known before anything is allocated.
  size_t bytes();
  // INVALID_ARGUMENT if a type has no kernels.
  const absl::Status& status() const { return status_; }
  // Errors: RESOURCE_EXHAUSTED, INTERNAL.
  absl::Status Upload(DevicePlan* memory, const LoadProgress& progress);

 private:
  struct Matrix {
    MatrixView view;
    DeviceMatrix* target;
  };
  struct Vector {
    std::vector<float> values;
    const float** target;
  };
  struct Range {  // of source bytes; disjoint, ascending
    const std::byte* begin;
    const std::byte* end;
    uint8_t* device = nullptr;
  };
  void MergeRanges();

  absl::Status status_;
  std::vector<Matrix> matrices_;
  std::vector<Vector> vectors_;
  std::vector<Range> ranges_;
};

}  // namespace packtrain

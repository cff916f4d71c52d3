#pragma once

// Arithmetic on f32 vectors in one instruction set: what attention, Gated DeltaNet and the
// activations need besides matrix products. Every sum runs in an order that depends on the position
// in the vector only, so the same inputs give the same bits in whatever company they are computed.
// Apart from kernels.h for the reason that weight_kernel.h gives.

#include <cstddef>
#include <cstdint>

#include "common/quant/type.h"

namespace packtrain {

// Scores of a query with the positions of a block lie this far apart.
inline constexpr size_t kScoreStride = 64;

// Queries that attend to the same keys and values; softmax over blocks as they come.
struct AttentionBlock {
  const float* q = nullptr;  // [queries, key_dim]
  size_t queries = 0;
  const float* keys = nullptr;  // [count, key_dim]
  size_t count = 0;             // 1 .. kScoreStride
  size_t key_dim = 0;
  const float* values = nullptr;  // [count], rows of value_dim at a distance of value_stride
  size_t value_dim = 0;
  size_t value_stride = 0;
  float scale = 1;
  float* scores = nullptr;  // [queries, kScoreStride] scratch
  float* max = nullptr;     // [queries] largest score so far; -infinity before the first block
  float* sum = nullptr;     // [queries] of exp(score - max)
  float* out = nullptr;     // [queries, value_dim] of exp(score - max) * value
};

struct VectorOps {
  // As Decode of common/quant, bit for bit.
  void (*decode)(TensorType type, const void* blocks, size_t count, float* values) = nullptr;

  // y = w * x / sqrt(mean(x^2) + eps); y may be x.
  void (*rms_norm)(const float* x, const float* w, float eps, size_t n, float* y) = nullptr;
  // y = silu(gate) * up; y may be either.
  void (*swiglu)(const float* gate, const float* up, size_t n, float* y) = nullptr;
  // y = x * sigmoid(gate); y may be either.
  void (*gate)(const float* x, const float* gate, size_t n, float* y) = nullptr;

  void (*attend)(const AttentionBlock& block) = nullptr;

  // scores[i] = scale * sum over h of weights[h] * max(0, q_h . keys_i), i < count <= kScoreStride
  //   q [heads, dim], weights [heads], keys [count, dim]; scratch [heads, kScoreStride]
  //   scores: kScoreStride floats may be written
  void (*index_scores)(const float* q, const float* weights, size_t heads, const float* keys,
                       size_t count, size_t dim, float scale, float* scratch,
                       float* scores) = nullptr;

  // y[c] = silu(sum over j of taps[j * stride + c] * inputs[j][c]) for c < n
  void (*conv_silu)(const float* const* inputs, const float* taps, size_t num_taps, size_t stride,
                    size_t n, float* y) = nullptr;

  // One token of one value head of Gated DeltaNet:
  //   S = exp(log_decay) S;  d = beta (v - S^T k);  S = S + k d^T;  out = S^T q
  //   state [dim of k, dim of v]; q already scaled
  void (*delta_rule)(const float* q, const float* k, const float* v, float log_decay, float beta,
                     size_t dim, float* state, float* out) = nullptr;
};

extern const VectorOps kVectorOpsScalar;
extern const VectorOps kVectorOpsAvx2;
extern const VectorOps kVectorOpsAvx512;

}  // namespace packtrain

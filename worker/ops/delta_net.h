#pragma once

// The recurrent part of a Gated DeltaNet layer, token by token in f32.

#include <cstddef>

namespace packtrain {

// Causal depthwise convolution and SiLU over `rows` tokens for channels [first, last).
//   history  [kernel - 1, channels] inputs of the tokens before, oldest first; updated
//   u        [rows, channels] inputs;  y [rows, channels] outputs, not u
//   taps     [channels, kernel], the last is the current token's
void CausalConv(const float* u, size_t rows, size_t channels, size_t kernel, const float* taps,
                size_t first, size_t last, float* history, float* y);

// One token of one value head:
//   S = exp(log_decay) S;  d = beta (v - S^T k);  S = S + k d^T;  out = S^T q
//   state [dim of k, dim of v]; q already scaled; d scratch [dim]
void DeltaRule(const float* q, const float* k, const float* v, float log_decay, float beta,
               size_t dim, float* state, float* d, float* out);

// y = x / sqrt(sum(x^2) + eps)
void L2Normalise(const float* x, float eps, size_t n, float* y);

}  // namespace packtrain

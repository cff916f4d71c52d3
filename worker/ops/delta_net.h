#pragma once

// The recurrent part of a Gated DeltaNet layer, in f32.

#include <cstddef>

#include "worker/kernels/cpu/kernels.h"

namespace packtrain {

// Causal depthwise convolution and SiLU over `rows` tokens for channels [first, last).
//   history  [kernel - 1, channels] inputs of the tokens before, oldest first; updated
//   u        [rows, channels] inputs;  y [rows, channels] outputs, not u
//   taps     [kernel, channels], the last row is the current token's
void CausalConv(const VectorOps& ops, const float* u, size_t rows, size_t channels, size_t kernel,
                const float* taps, size_t first, size_t last, float* history, float* y);

// y = x / sqrt(sum(x^2) + eps)
void L2Normalise(const float* x, float eps, size_t n, float* y);

}  // namespace packtrain

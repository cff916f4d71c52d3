#pragma once

// Scalar reference decode and encode of every tensor type: the judge of all kernels. Written for
// clarity, never tuned.

#include <cstddef>

#include "common/quant/type.h"

namespace packtrain {

// True for the types below that hold floating point weights (not I8..I64).
bool CanDecode(TensorType type);

// weights[0..count) = the values of `count / block_weights` blocks at `blocks` (any alignment, any
// bytes). Bit for bit what the format defines: f32 arithmetic in the written order, not fused.
// REQUIRES: CanDecode(type), count % block_weights == 0. Cost: one pass.
// Source: the block layouts in this folder's README.
void Decode(TensorType type, const void* blocks, size_t count, float* weights);

// True for F32, F16, BF16, Q8_0, Q8_1, Q8_K, Q4_1, Q4_K.
bool CanEncode(TensorType type);

// The inverse, rounding as the format's reference quantiser does.
// REQUIRES: CanEncode(type), count % block_weights == 0.
void Encode(TensorType type, const float* weights, size_t count, void* blocks);

float HalfToFloat(uint16_t half);
uint16_t FloatToHalf(float value);  // nearest even; overflow gives infinity, NaN stays NaN
float BFloat16ToFloat(uint16_t value);
uint16_t FloatToBFloat16(float value);  // nearest even, NaN kept quiet

}  // namespace packtrain

#pragma once

// Prepared activations of the AVX2 kernels: 256 values in their natural order, as 8-bit quants.

#include <cstddef>
#include <cstdint>

namespace packtrain {

struct alignas(64) ActivationUnitAvx2 {
  int8_t q[256];
  // Minus the sums of 16 quants: first those of the even groups, then those of the odd ones.
  int16_t negative_sums[16];
  // Likewise of 8 quants.
  int16_t negative_sums8[32];
  // Of 32, in their order.
  int16_t negative_sums32[8];
  // Steps: of each 32 values, or of this unit and the seven behind it, in every eighth unit.
  alignas(32) float scale[8];
};

// Layout ids (WeightKernel::activation_layout).
enum ActivationLayoutAvx2 {
  kLayoutF32,
  kLayoutStep256,  // one step per 256 values
  kLayoutStep32,
};

size_t UnitBytesAvx2(size_t n);
void PrepareStep256Avx2(const float* x, size_t n, void* activation);
void PrepareStep32Avx2(const float* x, size_t n, void* activation);

}  // namespace packtrain

#pragma once

// Prepared activations of the AVX-512 kernels.
//
// A unit covers kVectors * 64 values, quantised to 8 bits. Its vectors are ordered so that one
// 32-bit lane holds, in all vectors, weights of one scale; "lane sum" is the sum of a lane's 4 *
// kVectors quants. So a unit of weights takes one chain of integer dot products and one f32 step.

#include <cstddef>
#include <cstdint>

namespace packtrain {

template <int kVectors>
struct alignas(64) ActivationUnit {
  int8_t q[64 * kVectors];
  int32_t init[16];     // -offset * lane sum: removes the offset that makes weights unsigned
  float scale[16];      // step of the quants, per lane
  float min_scale[16];  // -scale * lane sum, for types with a minimum
};

// Layout ids (WeightKernel::activation_layout) and their orders.
//   F32        plain f32
//   Grid       256 a unit, byte n of vector v is value 4 n + v; offset 64; units in pairs
//   GridPair   512 a unit, value 256 (n / 32) + 8 (n % 32) + v; offset 64
//   Sixteen    256 a unit, value 16 (n / 4) + 4 v + n % 4; offset 1; units in fours
//   ThirtyTwo  256 a unit, value 32 (n / 8) + 8 v + n % 8, a step per 32; offset 1
enum ActivationLayoutAvx512 {
  kLayoutF32,
  kLayoutGrid,
  kLayoutGridPair,
  kLayoutSixteen,
  kLayoutThirtyTwo,
};

size_t GridBytesAvx512(size_t n);
size_t GridPairBytesAvx512(size_t n);
size_t SixteenBytesAvx512(size_t n);
size_t ThirtyTwoBytesAvx512(size_t n);

void PrepareGridAvx512(const float* x, size_t n, void* activation);
void PrepareGridPairAvx512(const float* x, size_t n, void* activation);
void PrepareSixteenAvx512(const float* x, size_t n, void* activation);
void PrepareThirtyTwoAvx512(const float* x, size_t n, void* activation);

}  // namespace packtrain

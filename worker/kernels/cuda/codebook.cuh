#pragma once

// From the codes of a grid entry (common/quant/codebooks.h) to what the kernels look up.

#include <cstdint>

#include "worker/kernels/cuda/weight_kernels.cuh"

namespace packtrain::cuda {

// Eight 2-bit codes, each to a nibble of its own.
inline uint32_t NibblesOfCodes(uint16_t codes) {
  uint32_t entry = 0;
  for (int j = 0; j < 8; ++j) entry |= ((codes >> 2 * j) & 3u) << 4 * j;
  return entry;
}

// The levels of four 3-bit codes.
inline uint32_t BytesOfCodes(uint16_t codes, const int8_t* levels) {
  uint32_t entry = 0;
  for (int j = 0; j < 4; ++j) entry |= static_cast<uint32_t>(levels[(codes >> 3 * j) & 7]) << 8 * j;
  return entry;
}

// Seven signs and the eighth that makes their number even.
__device__ inline uint32_t EvenSigns(uint32_t seven) { return seven | (__popc(seven) & 1) << 7; }

// Bytes 1..127 of `magnitudes`, byte j negated where bit j of `signs` is set.
__device__ inline int Negate(uint32_t magnitudes, uint32_t signs) {
  uint32_t one = BitsToBytes(signs);
  return static_cast<int>((magnitudes ^ (one * 255)) + one);
}

}  // namespace packtrain::cuda

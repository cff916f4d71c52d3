#pragma once

// Weights 32 at a time, from one description of each type's blocks:
//
//   struct Type {
//     static constexpr TensorType kType;
//     static constexpr int kWeights, kBytes;   // of a block; kWeights % 32 == 0
//     static constexpr bool kHalves;           // scale and minimum differ per 16 weights
//     static constexpr bool kMin;              // there is a minimum
//     static constexpr int kRowsAtOnce;        // of a product with few tokens: 2 if registers last
//     static constexpr int kTableWords;        // codebook in shared memory, 0: none
//     static const uint32_t* Table();          // device: the codebook in global memory
//     // Weights 32 * sub .. + 31 of the block at b in global memory (any alignment).
//     static void Unpack(const uint8_t* b, int sub, const uint32_t* table, Piece* p);
//   };
//
// A weight is scale * q + min, with the rounding of the format's definition.

#include "worker/kernels/cuda/device.cuh"

namespace packtrain::cuda {

struct Piece {
  int q[8];  // 32 int8, four neighbours a word
  float scale[2] = {0, 0};
  float min[2] = {0, 0};
};

// N little-endian words at p, any alignment; reads up to 7 bytes past them.
template <int N>
__device__ inline void LoadWords(const uint8_t* p, uint32_t* w) {
  auto address = reinterpret_cast<uintptr_t>(p);
  auto base = reinterpret_cast<const uint32_t*>(address & ~uintptr_t{3});
  int shift = static_cast<int>(address & 3) * 8;
  uint32_t low = __ldg(base);
#pragma unroll
  for (int i = 0; i < N; ++i) {
    uint32_t high = __ldg(base + i + 1);
    w[i] = __funnelshift_r(low, high, shift);
    low = high;
  }
}

// The same where the address is a multiple of 4.
template <int N>
__device__ inline void LoadAligned(const uint8_t* p, uint32_t* w) {
#pragma unroll
  for (int i = 0; i < N; ++i) w[i] = __ldg(reinterpret_cast<const uint32_t*>(p) + i);
}

// The same where the address is a multiple of 16 and N of 4.
template <int N>
__device__ inline void LoadVectors(const uint8_t* p, uint32_t* w) {
#pragma unroll
  for (int i = 0; i < N / 4; ++i) {
    uint4 v = __ldg(reinterpret_cast<const uint4*>(p) + i);
    w[4 * i] = v.x, w[4 * i + 1] = v.y, w[4 * i + 2] = v.z, w[4 * i + 3] = v.w;
  }
}

// p is even.
__device__ inline uint32_t LoadU16(const uint8_t* p) {
  return __ldg(reinterpret_cast<const uint16_t*>(p));
}
__device__ inline uint32_t LoadU8(const uint8_t* p) { return __ldg(p); }
__device__ inline float HalfBits(uint32_t bits) {
  return __half2float(__ushort_as_half(static_cast<unsigned short>(bits)));
}
__device__ inline float LoadHalf(const uint8_t* p) { return HalfBits(LoadU16(p)); }

// Bits 0..3 of x to bit 0 of bytes 0..3.
__device__ inline uint32_t BitsToBytes(uint32_t x) { return (x & 15) * 0x00204081 & 0x01010101; }

// Bits 0..7 of x to bit 0 of nibbles 0..7.
__device__ inline uint32_t BitsToNibbles(uint32_t x) {
  x = (x * 0x1001) & 0x000F000F;
  x = (x * 0x41) & 0x03030303;
  return (x * 9) & 0x11111111;
}

// The same for 7 bits, with an eighth that makes the number of set bits even.
__device__ inline uint32_t EvenSignsToNibbles(uint32_t x) {
  x = BitsToNibbles(x);
  return x | ((x * 0x11111111) & 0x10000000);
}

__device__ inline uint32_t Permute(uint32_t a, uint32_t b, uint32_t selector) {
  uint32_t r;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(b), "r"(selector));
  return r;
}

// 16 signed bytes looked up by nibble: low[i] by the low nibble of byte i of w, high[i] by the
// high.
struct ByteTable16 {
  uint32_t w[4];
};
__device__ inline void Lookup16(ByteTable16 t, uint32_t w, int* low, int* high) {
  uint32_t index = w & 0x77777777, choose = ((w >> 1) & 0x44444444) | 0x32103210;
  uint32_t a = Permute(Permute(t.w[0], t.w[1], index), Permute(t.w[2], t.w[3], index), choose);
  index >>= 16, choose >>= 16;
  uint32_t b = Permute(Permute(t.w[0], t.w[1], index), Permute(t.w[2], t.w[3], index), choose);
  *low = static_cast<int>(Permute(a, b, 0x6420));
  *high = static_cast<int>(Permute(a, b, 0x7531));
}

template <class T>
__device__ inline float Value(const Piece& p, int i) {
  int half = T::kHalves ? i / 16 : 0;
  auto q = static_cast<float>(static_cast<int8_t>(p.q[i / 4] >> (i % 4 * 8)));
  float v = __fmul_rn(p.scale[half], q);
  return T::kMin ? __fadd_rn(v, p.min[half]) : v;
}

}  // namespace packtrain::cuda

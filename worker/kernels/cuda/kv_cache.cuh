#pragma once

// Reading rows of the KV cache.

#include "worker/kernels/cuda/device.cuh"

namespace packtrain::cuda {

__device__ inline const uint8_t* KvRow(const void* cache, const int32_t* page_table, int position,
                                       size_t row_bytes) {
  size_t row = static_cast<size_t>(page_table[position / 64]) * 64 + position % 64;
  return static_cast<const uint8_t*>(cache) + row * row_bytes;
}

__device__ inline float KvHalf(const uint8_t* p) {
  return __half2float(__ushort_as_half(*reinterpret_cast<const uint16_t*>(p)));
}

// Value i of a cache row.
__device__ inline float KvValue(KvType type, const uint8_t* row, int i) {
  switch (type) {
    case KvType::kF32:
      return reinterpret_cast<const float*>(row)[i];
    case KvType::kF16:
      return KvHalf(row + 2 * i);
    case KvType::kQ8_0: {
      const uint8_t* block = row + i / 32 * 34;
      return KvHalf(block) * static_cast<float>(static_cast<int8_t>(block[2 + i % 32]));
    }
    case KvType::kQ4_1: {
      const uint8_t* block = row + i / 32 * 20;
      int q = (block[4 + i % 16] >> (i % 32 / 16 * 4)) & 15;
      return fmaf(static_cast<float>(q), KvHalf(block), KvHalf(block + 2));
    }
  }
  return 0;
}

// Value i of a cache row := v. Quantised types want a whole warp with 32 neighbours, i % 32 the
// lane.
__device__ inline void KvPut(KvType type, uint8_t* row, int i, float v) {
  int lane = threadIdx.x % 32;
  if (type == KvType::kF32) {
    reinterpret_cast<float*>(row)[i] = v;
  } else if (type == KvType::kF16) {
    reinterpret_cast<__half*>(row)[i] = __float2half_rn(v);
  } else if (type == KvType::kQ8_0) {
    float d = WarpMax(fabsf(v)) / 127.0f;
    float inverse = d > 0 ? 1.0f / d : 0.0f;
    uint8_t* block = row + i / 32 * 34;
    block[2 + lane] = static_cast<uint8_t>(static_cast<int8_t>(roundf(v * inverse)));
    if (lane == 0) *reinterpret_cast<__half*>(block) = __float2half_rn(d);
  } else {
    float low = -WarpMax(-v), high = WarpMax(v);
    float d = (high - low) / 15.0f;
    float inverse = d > 0 ? 1.0f / d : 0.0f;
    int q = min(15, static_cast<int>((v - low) * inverse + 0.5f));
    int upper = __shfl_down_sync(~0u, q, 16);
    uint8_t* block = row + i / 32 * 20;
    if (lane < 16) block[4 + lane] = static_cast<uint8_t>(q | upper << 4);
    if (lane == 0) {
      reinterpret_cast<__half*>(block)[0] = __float2half_rn(d);
      reinterpret_cast<__half*>(block)[1] = __float2half_rn(low);
    }
  }
}

__device__ inline uint32_t PackHalves(float a, float b) {
  __half2 h = __floats2half2_rn(a, b);
  return *reinterpret_cast<uint32_t*>(&h);
}

// Values 32 * block .. + 31 of a quantised row as halves, to 16-byte aligned shared memory.
__device__ inline void KvBlockToHalves(KvType type, const uint8_t* row, int block, __half* to) {
  auto out = reinterpret_cast<uint4*>(to);
  if (type == KvType::kQ8_0) {
    auto from = reinterpret_cast<const uint16_t*>(row + block * 34);
    float d = __half2float(__ushort_as_half(from[0]));
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      uint32_t v[4];
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        uint16_t two = from[1 + 4 * c + k];
        v[k] = PackHalves(d * static_cast<float>(static_cast<int8_t>(two & 255)),
                          d * static_cast<float>(static_cast<int8_t>(two >> 8)));
      }
      out[c] = make_uint4(v[0], v[1], v[2], v[3]);
    }
  } else {
    auto from = reinterpret_cast<const uint32_t*>(row + block * 20);
    float d = __half2float(__ushort_as_half(from[0] & 0xFFFF)),
          m = __half2float(__ushort_as_half(from[0] >> 16));
    uint32_t q[4];
#pragma unroll
    for (int k = 0; k < 4; ++k) q[k] = from[1 + k];
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      uint32_t v[4];
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        uint32_t two = (q[c % 2 * 2 + k / 2] >> (k % 2 * 16 + c / 2 * 4));
        v[k] = PackHalves(fmaf(static_cast<float>(two & 15), d, m),
                          fmaf(static_cast<float>((two >> 8) & 15), d, m));
      }
      out[c] = make_uint4(v[0], v[1], v[2], v[3]);
    }
  }
}

}  // namespace packtrain::cuda

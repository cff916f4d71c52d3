#include "worker/kernels/cuda/kv_cache.cuh"

namespace packtrain::cuda {
namespace {

// A warp per 32 values.
__global__ void __launch_bounds__(256)
    KvStoreKernel(KvRows at, const float* x, int stride, int n, KvType type, uint8_t* cache,
                  size_t row_bytes) {
  int row = blockIdx.x, lane = threadIdx.x % 32;
  const int32_t* table = at.page_tables + at.table_offset[row];
  auto to = const_cast<uint8_t*>(KvRow(cache, table, at.positions[row], row_bytes));
  for (int i = threadIdx.x; i < n; i += 256) {
    float v = x[static_cast<size_t>(row) * stride + i];
    if (type == KvType::kF32) {
      reinterpret_cast<float*>(to)[i] = v;
    } else if (type == KvType::kF16) {
      reinterpret_cast<__half*>(to)[i] = __float2half_rn(v);
    } else if (type == KvType::kQ8_0) {
      float d = WarpMax(fabsf(v)) / 127.0f;
      float inverse = d > 0 ? 1.0f / d : 0.0f;
      uint8_t* block = to + i / 32 * 34;
      block[2 + lane] = static_cast<uint8_t>(static_cast<int8_t>(roundf(v * inverse)));
      if (lane == 0) *reinterpret_cast<__half*>(block) = __float2half_rn(d);
    } else {
      float low = -WarpMax(-v), high = WarpMax(v);
      float d = (high - low) / 15.0f;
      float inverse = d > 0 ? 1.0f / d : 0.0f;
      int q = min(15, static_cast<int>((v - low) * inverse + 0.5f));
      int upper = __shfl_down_sync(~0u, q, 16);
      uint8_t* block = to + i / 32 * 20;
      if (lane < 16) block[4 + lane] = static_cast<uint8_t>(q | upper << 4);
      if (lane == 0) {
        reinterpret_cast<__half*>(block)[0] = __float2half_rn(d);
        reinterpret_cast<__half*>(block)[1] = __float2half_rn(low);
      }
    }
  }
}

__global__ void CopyPagesKernel(const int32_t* from, const int32_t* to, size_t words,
                                uint32_t* cache) {
  const uint32_t* source = cache + from[blockIdx.y] * words;
  uint32_t* target = cache + to[blockIdx.y] * words;
  for (size_t i = blockIdx.x * size_t{256} + threadIdx.x; i < words; i += gridDim.x * size_t{256})
    target[i] = source[i];
}

}  // namespace

int KvStore(const KvRows& at, const float* x, int stride, int n, KvType type, void* cache,
            Stream stream) {
  if (n % 32 != 0 && (type == KvType::kQ8_0 || type == KvType::kQ4_1)) {
    return static_cast<int>(cudaErrorInvalidValue);
  }
  if (at.rows == 0) return 0;
  KvStoreKernel<<<at.rows, 256, 0, stream>>>(at, x, stride, n, type, static_cast<uint8_t*>(cache),
                                             KvRowBytes(type, n));
  return LastLaunch();
}

int KvCopyPages(const int32_t* from, const int32_t* to, int count, size_t page_bytes, void* cache,
                Stream stream) {
  if (page_bytes % 4 != 0) return static_cast<int>(cudaErrorInvalidValue);
  if (count == 0) return 0;
  CopyPagesKernel<<<dim3(8, count), 256, 0, stream>>>(from, to, page_bytes / 4,
                                                      static_cast<uint32_t*>(cache));
  return LastLaunch();
}

}  // namespace packtrain::cuda

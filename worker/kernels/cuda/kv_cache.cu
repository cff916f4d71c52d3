#include "worker/kernels/cuda/kv_cache.cuh"

namespace packtrain::cuda {
namespace {

// A warp per 32 values.
__global__ void __launch_bounds__(256)
    KvStoreKernel(KvRows at, const float* x, int stride, int n, KvType type, uint8_t* cache,
                  size_t row_bytes) {
  LetNextBegin();
  AwaitPrevious();
  int row = blockIdx.x;
  const int32_t* table = at.page_tables + at.table_offset[row];
  auto to = const_cast<uint8_t*>(KvRow(cache, table, at.positions[row], row_bytes));
  for (int i = threadIdx.x; i < n; i += 256) {
    float v = x[static_cast<size_t>(row) * stride + i];
    KvPut(type, to, i, v);
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
  return Launch(KvStoreKernel, at.rows, 256, 0, stream, at, x, stride, n, type,
                static_cast<uint8_t*>(cache), KvRowBytes(type, n));
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

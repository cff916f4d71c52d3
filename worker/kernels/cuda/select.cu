// Largest elements of rows: top-k by radix selection.

#include "worker/kernels/cuda/device.cuh"

namespace packtrain::cuda {
namespace {

constexpr int kThreads = 1024, kWarps = kThreads / 32;

// Larger floats have larger keys; both zeros are one, NaN is below everything else.
__device__ inline uint32_t SortKey(float v) {
  if (v != v) v = -INFINITY;
  uint32_t bits = __float_as_uint(v + 0.0f);
  return bits & 0x80000000 ? ~bits : bits | 0x80000000;
}

// Sum over the threads in front of this one; *all = sum over all. scratch: kWarps ints.
__device__ inline int BlockPrefix(bool flag, int* scratch, int* all) {
  unsigned mask = __ballot_sync(~0u, flag);
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  __syncthreads();
  if (lane == 0) scratch[warp] = __popc(mask);
  __syncthreads();
  int mine = scratch[lane], inclusive = mine;
  for (int o = 1; o < 32; o *= 2) {
    int up = __shfl_up_sync(~0u, inclusive, o);
    if (lane >= o) inclusive += up;
  }
  *all = __shfl_sync(~0u, inclusive, 31);
  int before = __shfl_sync(~0u, inclusive - mine, warp);
  return before + __popc(mask & ((1u << lane) - 1));
}

// A block per row. Four passes find the k-th largest key byte by byte; the fifth writes, in order,
// what is above it and the first of those equal to it.
__global__ void __launch_bounds__(kThreads)
    TopKKernel(const float* x, int n, const int32_t* limits, int k, int32_t* indices) {
  LetNextBegin();
  AwaitPrevious();
  __shared__ int histogram[256];
  __shared__ int scratch[kWarps];
  __shared__ uint32_t chosen_prefix;
  __shared__ int chosen_left;
  size_t row = blockIdx.x;
  const float* values = x + row * n;
  int32_t* out = indices + row * k;
  int limit = limits != nullptr ? min(n, limits[row] + 1) : n;
  for (int i = threadIdx.x; i < k; i += kThreads) {
    if (i >= limit) out[i] = -1;
    if (i < limit && limit <= k) out[i] = i;
  }
  if (limit <= k) return;

  uint32_t prefix = 0, mask = 0;
  int left = k;  // elements wanted among those that match the prefix
  for (int shift = 24; shift >= 0; shift -= 8) {
    if (threadIdx.x < 256) histogram[threadIdx.x] = 0;
    __syncthreads();
    for (int i = threadIdx.x; i < limit; i += kThreads) {
      uint32_t key = SortKey(values[i]);
      if ((key & mask) == prefix) atomicAdd(&histogram[key >> shift & 255], 1);
    }
    __syncthreads();
    if (threadIdx.x < 32) {
      // Lane l owns digits 255 - 8 l and the seven below it.
      int sum = 0;
      for (int i = 0; i < 8; ++i) sum += histogram[255 - 8 * threadIdx.x - i];
      int inclusive = sum;
      for (int o = 1; o < 32; o *= 2) {
        int up = __shfl_up_sync(~0u, inclusive, o);
        if (threadIdx.x >= o) inclusive += up;
      }
      int before = inclusive - sum;
      if (before < left && left <= inclusive) {
        for (int i = 0; i < 8; ++i) {
          int digit = 255 - 8 * threadIdx.x - i;
          if (before + histogram[digit] >= left) {
            chosen_prefix = prefix | static_cast<uint32_t>(digit) << shift;
            chosen_left = left - before;
            break;
          }
          before += histogram[digit];
        }
      }
    }
    __syncthreads();
    prefix = chosen_prefix, left = chosen_left;
    mask |= 255u << shift;
  }

  int written = 0, equal_seen = 0;
  for (int base = 0; base < limit && written < k; base += kThreads) {
    int i = base + threadIdx.x, all = 0;
    uint32_t key = i < limit ? SortKey(values[i]) : 0;
    bool equal = i < limit && key == prefix;
    int rank = BlockPrefix(equal, scratch, &all);
    bool take = i < limit && (key > prefix || (equal && equal_seen + rank < left));
    equal_seen += all;
    int place = BlockPrefix(take, scratch, &all);
    if (take) out[written + place] = i;
    written += all;
  }
}

__global__ void GatherKernel(const float* x, int n, const int32_t* indices, int k, float* values) {
  size_t row = blockIdx.x;
  for (int i = threadIdx.x; i < k; i += blockDim.x) {
    int index = indices[row * k + i];
    values[row * k + i] = index >= 0 ? x[row * n + index] : -INFINITY;
  }
}

}  // namespace

int TopK(const float* x, int rows, int n, const int32_t* limits, int k, int32_t* indices,
         Stream stream) {
  if (rows == 0 || k == 0) return 0;
  return Launch(TopKKernel, rows, kThreads, 0, stream, x, n, limits, k, indices);
}

int Gather(const float* x, int rows, int n, const int32_t* indices, int k, float* values,
           Stream stream) {
  if (rows == 0 || k == 0) return 0;
  GatherKernel<<<rows, 256, 0, stream>>>(x, n, indices, k, values);
  return LastLaunch();
}

}  // namespace packtrain::cuda

#pragma once

// Small device helpers shared by the kernels of this folder.

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "worker/kernels/cuda/kernels.h"

namespace packtrain::cuda {

inline int LastLaunch() { return static_cast<int>(cudaPeekAtLastError()); }

inline int SmCount() {
  static const int count = [] {
    int device = 0, n = 1;
    cudaGetDevice(&device);
    cudaDeviceGetAttribute(&n, cudaDevAttrMultiProcessorCount, device);
    return n;
  }();
  return count;
}

constexpr int CeilDiv(int a, int b) { return (a + b - 1) / b; }

// Whether kernels of this build can begin before the one in front of them has ended: programmatic
// dependent launch, sm_90 and later.
bool LaunchesOverlap();

// Launches a kernel that calls AwaitPrevious before it touches what earlier kernels make.
template <typename... Params, typename... Args>
int Launch(void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared_bytes, Stream stream,
           const Args&... args) {
  cudaLaunchAttribute overlap = {};
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = &overlap;
  config.numAttrs = LaunchesOverlap() ? 1 : 0;
  return static_cast<int>(cudaLaunchKernelEx(&config, kernel, static_cast<Params>(args)...));
}

// First of all in a kernel: the next one may be brought onto the device beside this one.
__device__ inline void LetNextBegin() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::);
#endif
}
// Waits for all earlier kernels and their writes. Weights may be read before.
__device__ inline void AwaitPrevious() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Asks for the bytes at p to be brought into the L2 cache, by one warp.
__device__ inline void PrefetchByWarp(const uint8_t* p, int bytes) {
  for (int i = threadIdx.x % 32 * 128; i < bytes; i += 32 * 128)
    asm volatile("prefetch.global.L2 [%0];" ::"l"(p + i));
}

__device__ inline float WarpSum(float v) {
  for (int o = 16; o > 0; o >>= 1) v += __shfl_xor_sync(~0u, v, o);
  return v;
}

__device__ inline float WarpMax(float v) {
  for (int o = 16; o > 0; o >>= 1) v = fmaxf(v, __shfl_xor_sync(~0u, v, o));
  return v;
}

// Sum over the block in an order fixed by its size, known to every thread. scratch: 33 floats of
// shared memory.
__device__ inline float BlockSum(float v, float* scratch) {
  v = WarpSum(v);
  __syncthreads();
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = v;
  __syncthreads();
  return WarpSum(threadIdx.x % 32 < blockDim.x / 32 ? scratch[threadIdx.x % 32] : 0.0f);
}

__device__ inline float Silu(float x) { return x / (1.0f + expf(-x)); }
__device__ inline float Sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

__device__ inline uint32_t SharedAddress(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// 16 bytes from global to shared memory; both 16-byte aligned. Zeros if not `valid`.
__device__ inline void CopyAsync16(void* to, const void* from, bool valid = true) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(SharedAddress(to)), "l"(from),
               "r"(valid ? 16 : 0));
}
__device__ inline void CopyCommit() { asm volatile("cp.async.commit_group;" ::); }
template <int kPending>
__device__ inline void CopyWait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

__device__ inline void LoadMatrix4(uint32_t* r, const void* p) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(SharedAddress(p)));
}
__device__ inline void LoadMatrix4Transposed(uint32_t* r, const void* p) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(SharedAddress(p)));
}

// c [16 x 8] += a [16 x 16] b [16 x 8].
__device__ inline void MmaBf16(float* c, const uint32_t* a, uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
__device__ inline void MmaF16(float* c, const uint32_t* a, uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Element i of row `row` of n values, for the 32 lanes of a warp that hold 32 neighbours (i % 32 is
// the lane). With q8 the whole warp calls.
__device__ inline void Emit(const ActivationOut& out, int64_t row, int n, int i, float v) {
  if (out.f32 != nullptr) out.f32[row * (out.f32_stride != 0 ? out.f32_stride : n) + i] = v;
  if (out.bf16 != nullptr) {
    out.bf16[row * n + i] = __bfloat16_as_ushort(__float2bfloat16_rn(v));
  }
  if (out.q8 != nullptr) {
    char* base = static_cast<char*>(out.q8) + row * Q8RowBytes(n);
    float d = WarpMax(fabsf(v)) / 127.0f;
    float inverse = d > 0 ? 1.0f / d : 0.0f;
    int q = __float2int_rn(v * inverse);
    q = max(-127, min(127, q));
    int sum = q;
    for (int o = 16; o > 0; o >>= 1) sum += __shfl_xor_sync(~0u, sum, o);
    base[i % 32 / 16 * (n / 2) + i / 32 * 16 + i % 16] = static_cast<char>(q);
    if (i % 32 == 0) {
      reinterpret_cast<float2*>(base + n)[i / 32] = make_float2(d, d * static_cast<float>(sum));
    }
  }
}

}  // namespace packtrain::cuda

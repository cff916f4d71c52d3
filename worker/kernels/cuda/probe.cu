// Kernels that measure a device.

#include "worker/kernels/cuda/device.cuh"
#include "worker/kernels/cuda/probe.h"

namespace packtrain::cuda {
namespace {

constexpr int kThreads = 512;
constexpr int kLoads = 8;  // in flight per thread

__global__ void ReadMemoryKernel(const uint4* data, size_t count, uint32_t* sink) {
  const size_t stride = static_cast<size_t>(gridDim.x) * kThreads;
  uint32_t sum = 0;
  for (size_t i = static_cast<size_t>(blockIdx.x) * kThreads + threadIdx.x; i < count;
       i += stride * kLoads) {
    uint4 v[kLoads];
#pragma unroll
    for (int k = 0; k < kLoads; ++k) {
      const size_t at = i + static_cast<size_t>(k) * stride;
      v[k] = at < count ? data[at] : uint4{};
    }
#pragma unroll
    for (int k = 0; k < kLoads; ++k) sum ^= v[k].x ^ v[k].y ^ v[k].z ^ v[k].w;
  }
  if (sum == 0x9e3779b9u) *sink = sum;
}

__device__ uint64_t Nanoseconds() {
  uint64_t now;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
  return now;
}

__global__ void AnswerFlagsKernel(const volatile uint32_t* ping, volatile uint32_t* pong,
                                  uint32_t trips, uint64_t deadline_ns) {
  const uint64_t end = Nanoseconds() + deadline_ns;
  for (uint32_t i = 1; i <= trips; ++i) {
    while (*ping != i) {
      if (Nanoseconds() > end) return;
    }
    *pong = i;
    __threadfence_system();
  }
}

}  // namespace

int ReadMemory(const void* data, size_t bytes, uint32_t* sink, Stream stream) {
  ReadMemoryKernel<<<SmCount() * 4, kThreads, 0, stream>>>(static_cast<const uint4*>(data),
                                                           bytes / sizeof(uint4), sink);
  return LastLaunch();
}

int AnswerFlags(const uint32_t* ping, uint32_t* pong, uint32_t trips, uint64_t deadline_ns,
                Stream stream) {
  AnswerFlagsKernel<<<1, 1, 0, stream>>>(ping, pong, trips, deadline_ns);
  return LastLaunch();
}

}  // namespace packtrain::cuda

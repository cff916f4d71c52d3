#include "worker/kernels/cuda/device.cuh"
#include "worker/kernels/cuda/mailbox.h"

namespace packtrain::cuda {
namespace {

constexpr int kPostThreads = 1024;
constexpr int kTakeThreads = 256;

// Whether the host has closed the mailbox is asked this often: every question is a round trip over
// the link, and the reply is what we wait for.
constexpr int kLooksPerCheck = 64;

__device__ inline uint64_t LoadAcquire(const uint64_t* p) {
  uint64_t v;
  asm volatile("ld.acquire.sys.global.u64 %0, [%1];" : "=l"(v) : "l"(p) : "memory");
  return v;
}
__device__ inline void StoreRelease(uint64_t* p, uint64_t v) {
  asm volatile("st.release.sys.global.u64 [%0], %1;" ::"l"(p), "l"(v) : "memory");
}
__device__ inline void StoreRelease(uint32_t* p, uint32_t v) {
  asm volatile("st.release.sys.global.u32 [%0], %1;" ::"l"(p), "r"(v) : "memory");
}
__device__ inline uint32_t LoadRelaxed(const uint32_t* p) {
  uint32_t v;
  asm volatile("ld.relaxed.sys.global.u32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
  return v;
}
__device__ inline uint64_t GlobalTime() {
  uint64_t ns;
  asm volatile("mov.u64 %0, %globaltimer;" : "=l"(ns));
  return ns;
}

// One block: 24 KB a row are a few microseconds of the link, and its barrier orders all writes
// before the word.
__global__ void __launch_bounds__(kPostThreads)
    PostKernel(const __grid_constant__ MailboxRequest request) {
  LetNextBegin();
  AwaitPrevious();
  if (request.step->failed != 0) return;
  const Mailbox& box = request.mailbox;
  const size_t values = static_cast<size_t>(request.rows) * request.n;
  const auto* from = reinterpret_cast<const float4*>(request.x);
  auto* to = reinterpret_cast<float4*>(box.x);
  for (size_t i = threadIdx.x; i < values / 4; i += kPostThreads) to[i] = from[i];
  for (size_t i = values / 4 * 4 + threadIdx.x; i < values; i += kPostThreads)
    box.x[i] = request.x[i];
  for (int i = threadIdx.x; i < request.rows * request.top_k; i += kPostThreads) {
    box.ids[i] = request.ids[i];
    box.weights[i] = request.weights[i];
  }
  if (threadIdx.x == 0) {
    box.call[0] = static_cast<uint32_t>(request.layer);
    box.call[1] = static_cast<uint32_t>(request.rows);
    box.call[2] = static_cast<uint32_t>(request.top_k);
  }
  __threadfence_system();
  __syncthreads();
  if (threadIdx.x == 0) StoreRelease(box.request, request.word + request.step->bits);
}

// Tells the host and later kernels.
__device__ void Fail(const MailboxRequest& request, MailboxFailure failure, uint32_t code) {
  request.step->failed = 1;
  request.report->failure = failure;
  request.report->layer = static_cast<uint32_t>(request.layer);
  request.report->code = code;
}

__global__ void AwaitKernel(const __grid_constant__ MailboxRequest request) {
  LetNextBegin();
  AwaitPrevious();
  MailboxStep* step = request.step;
  if (step->failed == 0) {
    const Mailbox& box = request.mailbox;
    const uint64_t word = request.word + step->bits, begin = GlobalTime();
    for (int look = 0;; ++look) {
      if (LoadAcquire(box.reply) == word) {
        if (uint32_t code = LoadRelaxed(box.code); code != 0)
          Fail(request, MailboxFailure::kRefused, code);
        break;
      }
      if (look % kLooksPerCheck == 0 && LoadRelaxed(box.closed) != 0) {
        Fail(request, MailboxFailure::kClosed, 0);
        break;
      }
      if (GlobalTime() - begin > request.timeout_ns) {
        Fail(request, MailboxFailure::kTimedOut, 0);
        break;
      }
    }
    step->waited_ns += GlobalTime() - begin;
  }
  request.report->waited_ns = step->waited_ns;
  StoreRelease(&request.report->awaited, ++step->awaited);
}

// Element i of a row in y, with what is added to it.
__device__ inline float Sum(float reply, float shared, float scale) {
  return fmaf(shared, scale, reply);
}

// A block per row and kTakeThreads groups of 4 values. The reply is read past every cache.
__global__ void __launch_bounds__(kTakeThreads)
    TakeKernel(const __grid_constant__ MailboxRequest request, const float* shared,
               const float* logit, float* y) {
  LetNextBegin();
  AwaitPrevious();
  const int first = (blockIdx.y * kTakeThreads + threadIdx.x) * 4;
  if (first >= request.n) return;
  const size_t at = static_cast<size_t>(blockIdx.x) * request.n + first;
  const bool failed = request.step->failed != 0;
  const float scale = logit != nullptr ? Sigmoid(logit[blockIdx.x]) : 1.0f;
  const float* from = request.mailbox.y + at;
  if (request.n % 4 == 0) {
    float4 v = failed ? make_float4(0, 0, 0, 0) : __ldcv(reinterpret_cast<const float4*>(from));
    if (shared != nullptr) {
      const float4 s = *reinterpret_cast<const float4*>(shared + at);
      v = make_float4(Sum(v.x, s.x, scale), Sum(v.y, s.y, scale), Sum(v.z, s.z, scale),
                      Sum(v.w, s.w, scale));
    }
    *reinterpret_cast<float4*>(y + at) = v;
    return;
  }
  for (int i = 0; i < min(4, request.n - first); ++i) {
    float v = failed ? 0.0f : __ldcv(from + i);
    y[at + i] = shared != nullptr ? Sum(v, shared[at + i], scale) : v;
  }
}

}  // namespace

int PostExperts(const MailboxRequest& request, Stream stream) {
  return Launch(PostKernel, 1, kPostThreads, 0, stream, request);
}

int AwaitExperts(const MailboxRequest& request, Stream stream) {
  return Launch(AwaitKernel, 1, 1, 0, stream, request);
}

int TakeExperts(const MailboxRequest& request, const float* shared, const float* logit, float* y,
                Stream stream) {
  return Launch(TakeKernel, dim3(request.rows, CeilDiv(request.n, 4 * kTakeThreads)), kTakeThreads,
                0, stream, request, shared, logit, y);
}

}  // namespace packtrain::cuda

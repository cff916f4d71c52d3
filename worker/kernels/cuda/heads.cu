// What stands between the projections and attention in a decode step, in one kernel per kind of
// attention: norms, RoPE, the cache's new rows. Bits as RmsNorm, Rope, Convert and KvStore give.

#include "worker/kernels/cuda/kv_cache.cuh"

namespace packtrain::cuda {
namespace {

constexpr int kThreads = 128, kPer = 8, kMaxDim = kThreads * kPer;

// head[0, n) := rms(head, weight), the order of the sum that of RmsNorm for n < 1024.
__device__ inline void NormHead(float* head, const float* weight, float eps, int n) {
  __shared__ float scratch[33];
  float v[kPer], sum = 0;
#pragma unroll
  for (int k = 0; k < kPer; ++k) {
    int i = threadIdx.x + k * kThreads;
    v[k] = i < n ? head[i] : 0.0f;
    sum = fmaf(v[k], v[k], sum);
  }
  float scale = 1.0f / sqrtf(BlockSum(sum, scratch) / static_cast<float>(n) + eps);
#pragma unroll
  for (int k = 0; k < kPer; ++k) {
    int i = threadIdx.x + k * kThreads;
    if (i < n) head[i] = v[k] * scale * weight[i];
  }
  __syncthreads();
}

__device__ inline void RotateHead(float* head, RopeKind kind, const float2* cos_sin, int pairs) {
  for (int pair = threadIdx.x; pair < pairs; pair += kThreads) {
    int first = kind == RopeKind::kNorm ? 2 * pair : pair;
    int second = kind == RopeKind::kNorm ? 2 * pair + 1 : pair + pairs;
    float2 r = cos_sin[pair];
    float a = head[first], b = head[second];
    head[first] = fmaf(a, r.x, -(b * r.y));
    head[second] = fmaf(a, r.y, b * r.x);
  }
  __syncthreads();
}

__device__ inline uint8_t* OwnRow(const KvRows& at, int row, void* cache, size_t row_bytes) {
  return const_cast<uint8_t*>(
      KvRow(cache, at.page_tables + at.table_offset[row], at.positions[row], row_bytes));
}

// A block per (head of q, k or v, row).
__global__ void __launch_bounds__(kThreads) GqaKernel(const __grid_constant__ GqaHeadsArgs args) {
  __shared__ float head[kMaxDim];
  int h = blockIdx.x, row = blockIdx.y;
  LetNextBegin();
  AwaitPrevious();
  bool is_q = h < args.heads, is_k = !is_q && h < args.heads + args.kv_heads;
  int n = is_q || is_k ? args.k_dim : args.v_dim;
  int own = is_q ? h : (is_k ? h - args.heads : h - args.heads - args.kv_heads);
  const float* from =
      is_q ? args.q + static_cast<size_t>(row) * args.q_stride +
                 static_cast<size_t>(own) * args.q_head_stride
           : (is_k ? args.k : args.v) + (static_cast<size_t>(row) * args.kv_heads + own) * n;
  for (int i = threadIdx.x; i < n; i += kThreads) head[i] = from[i];
  __syncthreads();
  if (is_q || is_k) {
    const float* weight = is_q ? args.q_norm : args.k_norm;
    if (weight != nullptr) NormHead(head, weight, args.eps, n);
    RotateHead(
        head, args.rope,
        reinterpret_cast<const float2*>(args.cos_sin) + static_cast<size_t>(row) * args.pairs,
        args.pairs);
  }
  if (is_q) {
    float* to = args.q_out + (static_cast<size_t>(row) * args.heads + own) * n;
    for (int i = threadIdx.x; i < n; i += kThreads) to[i] = head[i];
    return;
  }
  uint8_t* to = OwnRow(args.at, row, is_k ? args.k_cache : args.v_cache,
                       KvRowBytes(args.type, static_cast<size_t>(args.kv_heads) * n));
  for (int i = threadIdx.x; i < n; i += kThreads) KvPut(args.type, to, own * n + i, head[i]);
}

// A block per (head, row); the last head is the latent row.
__global__ void __launch_bounds__(kThreads) MlaKernel(const __grid_constant__ MlaHeadsArgs args) {
  __shared__ float head[kMaxDim];
  int h = blockIdx.x, row = blockIdx.y, rope = 2 * args.pairs;
  const float2* cos_sin =
      reinterpret_cast<const float2*>(args.cos_sin) + static_cast<size_t>(row) * args.pairs;
  LetNextBegin();
  AwaitPrevious();
  if (h < args.heads) {
    int64_t index = static_cast<int64_t>(row) * args.heads + h;
    const float* from = args.q + index * (args.nope + rope);
    for (int i = threadIdx.x; i < args.nope; i += kThreads)
      Emit(args.q_nope, index, args.nope, i, from[i]);
    for (int i = threadIdx.x; i < rope; i += kThreads) head[i] = from[args.nope + i];
    __syncthreads();
    RotateHead(head, args.rope, cos_sin, args.pairs);
    float* to = args.absorbed + index * (args.rank + rope) + args.rank;
    for (int i = threadIdx.x; i < rope; i += kThreads) to[i] = head[i];
    return;
  }
  const float* from = args.kv + static_cast<size_t>(row) * (args.rank + rope);
  for (int i = threadIdx.x; i < args.rank + rope; i += kThreads) head[i] = from[i];
  __syncthreads();
  NormHead(head, args.kv_norm, args.eps, args.rank);
  RotateHead(head + args.rank, args.rope, cos_sin, args.pairs);
  uint8_t* to = OwnRow(args.at, row, args.cache,
                       KvRowBytes(args.type, static_cast<size_t>(args.rank + rope)));
  for (int i = threadIdx.x; i < args.rank + rope; i += kThreads) KvPut(args.type, to, i, head[i]);
}

bool Quantised(KvType type) { return type == KvType::kQ8_0 || type == KvType::kQ4_1; }

}  // namespace

int GqaHeads(const GqaHeadsArgs& args, Stream stream) {
  if (args.k_dim >= kMaxDim || args.v_dim >= kMaxDim || 2 * args.pairs > args.k_dim ||
      (Quantised(args.type) && (args.k_dim % 32 != 0 || args.v_dim % 32 != 0))) {
    return static_cast<int>(cudaErrorInvalidValue);
  }
  if (args.at.rows == 0) return 0;
  return Launch(GqaKernel, dim3(args.heads + 2 * args.kv_heads, args.at.rows), kThreads, 0, stream,
                args);
}

int MlaHeads(const MlaHeadsArgs& args, Stream stream) {
  if (args.rank + 2 * args.pairs > kMaxDim || args.rank >= kMaxDim ||
      (args.q_nope.q8 != nullptr && args.nope % 32 != 0) ||
      (Quantised(args.type) && (args.rank + 2 * args.pairs) % 32 != 0)) {
    return static_cast<int>(cudaErrorInvalidValue);
  }
  if (args.at.rows == 0) return 0;
  return Launch(MlaKernel, dim3(args.heads + 1, args.at.rows), kThreads, 0, stream, args);
}

}  // namespace packtrain::cuda

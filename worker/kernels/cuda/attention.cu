// Attention in f32 for any dimensions, and the combination of splits.

#include "worker/kernels/cuda/attention.cuh"

namespace packtrain::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kMaxValues = 8;  // v_dim / kThreads

// A block per (split, head, row): scores of 64 entries at a time, a warp per entry; then the
// values, a thread per dimension.
__global__ void __launch_bounds__(kThreads) AttentionKernel(AttentionArgs args) {
  LetNextBegin();
  AwaitPrevious();
  __shared__ float scores[64];
  __shared__ const uint8_t* value_rows[64];
  int split = blockIdx.x, head = blockIdx.y, row = blockIdx.z;
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  int count = EntryCount(args, row);
  Split range = SplitOf(count, args.max_splits, split);
  if (range.begin >= range.end) return;
  const int32_t* table = args.at.page_tables + args.at.table_offset[row];
  int kv_head = head / (args.heads / args.kv_heads);
  size_t k_bytes = KvRowBytes(args.type, static_cast<size_t>(args.kv_heads) * args.k_dim);
  size_t v_bytes = KvRowBytes(args.type, static_cast<size_t>(args.kv_heads) * args.v_dim);
  const float* q = args.q + static_cast<size_t>(row) * args.q_stride +
                   static_cast<size_t>(head) * args.q_head_stride;

  float highest = -INFINITY, sum = 0, acc[kMaxValues] = {};
  for (int base = range.begin; base < range.end; base += 64) {
    int entries = min(64, range.end - base);
    for (int e = warp; e < entries; e += kThreads / 32) {
      int position = EntryPosition(args, row, base + e);
      const uint8_t* key = KvRow(args.k_cache, table, position, k_bytes);
      float dot = 0;
      for (int i = lane; i < args.k_dim; i += 32)
        dot = fmaf(q[i], KvValue(args.type, key, kv_head * args.k_dim + i), dot);
      dot = WarpSum(dot);
      if (lane == 0) {
        scores[e] = dot * args.scale;
        value_rows[e] =
            args.v_cache != nullptr ? KvRow(args.v_cache, table, position, v_bytes) : key;
      }
    }
    __syncthreads();
    float next = highest;
    for (int e = 0; e < entries; ++e) next = fmaxf(next, scores[e]);
    float keep = expf(highest - next);
    highest = next;
    sum *= keep;
#pragma unroll
    for (int i = 0; i < kMaxValues; ++i) acc[i] *= keep;
    int v_offset = args.v_cache != nullptr ? kv_head * args.v_dim : kv_head * args.k_dim;
    for (int e = 0; e < entries; ++e) {
      float p = expf(scores[e] - highest);
      sum += p;
#pragma unroll
      for (int i = 0; i < kMaxValues; ++i) {
        int d = threadIdx.x + i * kThreads;
        if (d < args.v_dim)
          acc[i] = fmaf(p, KvValue(args.type, value_rows[e], v_offset + d), acc[i]);
      }
    }
    __syncthreads();
  }
  bool whole = args.max_splits == 1;
  size_t index = PartialIndex(args, row, head, split);
  float* partial = PartialValues(args) + index * args.v_dim;
  if (!whole && threadIdx.x == 0) PartialStats(args)[index] = make_float2(highest, sum);
#pragma unroll
  for (int i = 0; i < kMaxValues; ++i) {
    int d = threadIdx.x + i * kThreads;
    if (d >= args.v_dim) continue;
    if (whole) {
      StoreWhole(args, row, head, d, acc[i] / sum);
    } else {
      partial[d] = acc[i];
    }
  }
}

// A block per (head, row): splits in order.
__global__ void __launch_bounds__(kThreads) CombineKernel(AttentionArgs args) {
  LetNextBegin();
  AwaitPrevious();
  int head = blockIdx.x, row = blockIdx.y;
  int used = SplitOf(EntryCount(args, row), args.max_splits, 0).used;
  size_t first = PartialIndex(args, row, head, 0);
  const float2* stats = PartialStats(args) + first;
  const float* values = PartialValues(args) + first * args.v_dim;
  float highest = -INFINITY;
  for (int s = 0; s < used; ++s) highest = fmaxf(highest, stats[s].x);
  __shared__ float factors[kThreads];
  float sum = 0, acc[kMaxValues] = {};
  for (int base = 0; base < used; base += kThreads) {
    int chunk = min(kThreads, used - base);
    __syncthreads();
    if (threadIdx.x < chunk) factors[threadIdx.x] = expf(stats[base + threadIdx.x].x - highest);
    __syncthreads();
#pragma unroll 4
    for (int s = 0; s < chunk; ++s) {
      sum = fmaf(stats[base + s].y, factors[s], sum);
#pragma unroll
      for (int i = 0; i < kMaxValues; ++i) {
        int d = threadIdx.x + i * kThreads;
        if (d < args.v_dim)
          acc[i] = fmaf(values[static_cast<size_t>(base + s) * args.v_dim + d], factors[s], acc[i]);
      }
    }
  }
  for (int i = 0; i < kMaxValues; ++i) {
    int d = threadIdx.x + i * kThreads;
    if (d >= args.v_dim) continue;
    float v = acc[i] / sum;
    int64_t head_row = static_cast<int64_t>(row) * args.heads + head;
    if (args.out != nullptr) args.out[head_row * args.v_dim + d] = v;
    const AttentionOut& emit = args.emit;
    if (emit.gate != nullptr) {
      v *= Sigmoid(emit.gate[static_cast<size_t>(row) * emit.gate_stride +
                             static_cast<size_t>(head) * emit.gate_head_stride + d]);
    }
    if (emit.per_head) {
      Emit(emit.values, head_row, args.v_dim, d, v);
    } else {
      Emit(emit.values, row, args.heads * args.v_dim, head * args.v_dim + d, v);
    }
  }
}

}  // namespace

size_t AttentionWorkspaceBytes(int rows, int heads, int v_dim, int max_splits) {
  return size_t{4} * rows * heads * max_splits * (v_dim + 2);
}

int Attention(const AttentionArgs& args, Stream stream) {
  if (args.kv_heads < 1 || args.heads % args.kv_heads != 0 || args.v_dim > kThreads * kMaxValues ||
      ((args.type == KvType::kQ8_0 || args.type == KvType::kQ4_1) &&
       (args.k_dim % 32 != 0 || args.v_dim % 32 != 0)) ||
      args.max_splits < 1 || (args.emit.values.q8 != nullptr && args.v_dim % 32 != 0) ||
      (args.v_cache == nullptr && (args.kv_heads != 1 || args.v_dim > args.k_dim))) {
    return static_cast<int>(cudaErrorInvalidValue);
  }
  if (args.at.rows == 0) return 0;
  int code = AttentionTensorCores(args, stream);
  if (code > 0) return code;
  if (code < 0) {
    code = Launch(AttentionKernel, dim3(args.max_splits, args.heads, args.at.rows), kThreads, 0,
                  stream, args);
  }
  if (code != 0) return code;
  if (args.max_splits > 1)
    return Launch(CombineKernel, dim3(args.heads, args.at.rows), kThreads, 0, stream, args);
  return 0;
}

}  // namespace packtrain::cuda

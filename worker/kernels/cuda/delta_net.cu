// Gated DeltaNet: short convolution, normalisation of q and k, and, for sequences of few rows, the
// recurrence token by token. The state is read once and written once per ubatch, so a token of a
// longer ubatch costs no memory traffic of its own; how such rows are cut into ubatches makes no
// difference.

#include "worker/kernels/cuda/delta_net.cuh"

namespace packtrain::cuda {
namespace {

constexpr int kMaxK = 128;
constexpr int kConvRows = 32;  // of a thread

// A thread per (channel, 32 rows, sequence). The one of a sequence's first rows, which alone reads
// the state, also writes it.
__global__ void __launch_bounds__(256) ConvolutionKernel(DeltaNetArgs args, int channels) {
  int c = blockIdx.x * 256 + threadIdx.x, s = blockIdx.z;
  int begin = args.row_offset[s], end = args.row_offset[s + 1];
  int first = begin + blockIdx.y * kConvRows, last = min(first + kConvRows, end);
  if (c >= channels || first >= end) return;
  float* state = args.conv_state + static_cast<size_t>(args.slot[s]) * 3 * channels + c;
  float4 w = reinterpret_cast<const float4*>(args.conv_weight)[c];
  auto u = [&](int row) { return __ldg(args.u + static_cast<size_t>(row) * channels + c); };
  bool start = blockIdx.y == 0;
  float a = start ? state[0] : u(first - 3), b = start ? state[channels] : u(first - 2),
        d = start ? state[2 * static_cast<size_t>(channels)] : u(first - 1);
  if (start) {
    // The last three of the state and the sequence's rows.
    float old[6] = {a, b, d};
    int rows = min(end - begin, 3);
#pragma unroll
    for (int i = 0; i < 3; ++i) {
      if (i < rows) old[3 + i] = u(end - rows + i);
    }
#pragma unroll
    for (int i = 0; i < 3; ++i) {
      float v = rows == 1 ? old[1 + i] : rows == 2 ? old[2 + i] : old[3 + i];
      state[i * static_cast<size_t>(channels)] = v;
    }
  }
#pragma unroll 8
  for (int row = first; row < last; ++row) {
    float e = u(row);
    float y = fmaf(w.w, e, fmaf(w.z, d, fmaf(w.y, b, w.x * a)));
    args.qkv[static_cast<size_t>(row) * channels + c] = Silu(y);
    a = b, b = d, d = e;
  }
}

// q and k heads to unit length, q also divided by sqrt(k_dim). A warp per (row, head).
__global__ void __launch_bounds__(256) NormalizeKernel(DeltaNetArgs args, int channels) {
  int i = blockIdx.x * 8 + threadIdx.x / 32, lane = threadIdx.x % 32;
  int row = i / (2 * args.k_heads), head = i % (2 * args.k_heads);
  if (row >= args.rows) return;
  float* v = args.qkv + static_cast<size_t>(row) * channels + head * args.k_dim;
  float x[kMaxK / 32], sum = 0;
#pragma unroll
  for (int j = 0; j < kMaxK / 32; ++j) {
    x[j] = 32 * j + lane < args.k_dim ? v[32 * j + lane] : 0;
    sum = fmaf(x[j], x[j], sum);
  }
  float scale = 1.0f / sqrtf(WarpSum(sum) + args.eps);
  if (head < args.k_heads) scale /= sqrtf(static_cast<float>(args.k_dim));
#pragma unroll
  for (int j = 0; j < kMaxK / 32; ++j) {
    if (32 * j + lane < args.k_dim) v[32 * j + lane] = x[j] * scale;
  }
}

// The recurrence. A block per (16 columns of a head's state, head, sequence); columns do not
// interact. Lane 4 c + g of a warp holds rows 32 g .. + 31 of its column c (8 columns a warp).
// Tokens come through shared memory, a batch of them while the one before is computed.
constexpr int kGroups = 4, kPerGroup = kMaxK / kGroups, kColumns = 16, kBatch = 16;
constexpr int kThreads = kColumns * kGroups;
// Four words of padding per group keep the groups in different banks.
constexpr int kGroupPitch = kPerGroup + 4;

struct Batch {
  float q[kBatch][kGroups * kGroupPitch], k[kBatch][kGroups * kGroupPitch];
  float v[kBatch][kColumns];
};

__global__ void __launch_bounds__(kThreads) RecurrenceKernel(DeltaNetArgs args, int channels) {
  __shared__ __align__(16) Batch batches[2];
  __shared__ float betas[kBatch], decays[kBatch];
  int head = blockIdx.y, s = blockIdx.z;
  int row = args.row_offset[s], end = args.row_offset[s + 1];
  if (end - row > kDeltaChunk) return;
  int g = threadIdx.x % kGroups, first_column = blockIdx.x * kColumns;
  int column = first_column + threadIdx.x / kGroups;
  bool valid = column < args.v_dim;
  float* state =
      args.state +
      (static_cast<size_t>(args.slot[s]) * args.v_heads + head) * args.k_dim * args.v_dim + column;
  float memory[kPerGroup];
#pragma unroll
  for (int i = 0; i < kPerGroup; ++i) {
    int k = g * kPerGroup + i;
    memory[i] = valid && k < args.k_dim ? state[static_cast<size_t>(k) * args.v_dim] : 0;
  }
  int k_head = head % args.k_heads;
  int q_at = k_head * args.k_dim, k_at = (args.k_heads + k_head) * args.k_dim;
  int v_at = 2 * args.k_heads * args.k_dim + head * args.v_dim + first_column;
  float a = args.a[head], dt = args.dt_bias[head];

  float next_beta = 0, next_alpha = 0;
  // One warp copies queries, the other keys, a lane four values of each row; a row's values are
  // copied by four lanes.
  auto fetch = [&](int from, Batch* to) {
    int rows = min(kBatch, end - from), part = threadIdx.x % 32 * 4;
    const float* first = args.qkv + static_cast<size_t>(from) * channels;
    const float* of_head = first + (threadIdx.x < 32 ? q_at : k_at) + part;
    auto heads = threadIdx.x < 32 ? to->q : to->k;
    for (int i = 0; i < rows; ++i) {
      CopyAsync16(&heads[i][part + part / kPerGroup * 4],
                  part < args.k_dim ? of_head + static_cast<size_t>(i) * channels : first,
                  part < args.k_dim);
    }
    if (int i = threadIdx.x / 4, at = threadIdx.x % 4 * 4; i < rows) {
      bool in_head = first_column + at < args.v_dim;
      CopyAsync16(&to->v[i][at],
                  in_head ? first + static_cast<size_t>(i) * channels + v_at + at : first, in_head);
    }
    CopyCommit();
    if (static_cast<int>(threadIdx.x) < rows) {
      size_t at = static_cast<size_t>(from + threadIdx.x) * args.v_heads + head;
      next_beta = args.beta_logit[at], next_alpha = args.alpha[at];
    }
  };
  if (row < end) fetch(row, &batches[0]);
  for (int buffer = 0; row < end; row += kBatch, buffer ^= 1) {
    CopyWait<0>();
    __syncthreads();
    if (threadIdx.x < kBatch) {
      betas[threadIdx.x] = Sigmoid(next_beta);
      decays[threadIdx.x] = expf(LogDecay(a, next_alpha, dt));
    }
    __syncthreads();
    if (row + kBatch < end) fetch(row + kBatch, &batches[buffer ^ 1]);
    const Batch& batch = batches[buffer];
    int rows = min(kBatch, end - row);
    for (int i = 0; i < rows; ++i) {
      const float4* k = reinterpret_cast<const float4*>(batch.k[i] + g * kGroupPitch);
      const float4* q = reinterpret_cast<const float4*>(batch.q[i] + g * kGroupPitch);
      float decay = decays[i], v = batch.v[i][threadIdx.x / kGroups];
      float key[kPerGroup], predicted = 0;
#pragma unroll
      for (int j = 0; j < kPerGroup / 4; ++j) {
        float4 x = k[j];
        key[4 * j] = x.x, key[4 * j + 1] = x.y, key[4 * j + 2] = x.z, key[4 * j + 3] = x.w;
      }
#pragma unroll
      for (int j = 0; j < kPerGroup; ++j) {
        memory[j] *= decay;
        predicted = fmaf(memory[j], key[j], predicted);
      }
      predicted += __shfl_xor_sync(~0u, predicted, 1);
      predicted += __shfl_xor_sync(~0u, predicted, 2);
      float delta = betas[i] * (v - predicted), out = 0;
#pragma unroll
      for (int j = 0; j < kPerGroup; ++j) {
        float4 x = q[j / 4];
        float query = j % 4 == 0 ? x.x : j % 4 == 1 ? x.y : j % 4 == 2 ? x.z : x.w;
        memory[j] = fmaf(key[j], delta, memory[j]);
        out = fmaf(memory[j], query, out);
      }
      out += __shfl_xor_sync(~0u, out, 1);
      out += __shfl_xor_sync(~0u, out, 2);
      if (g == 0 && valid)
        args.out[(static_cast<size_t>(row + i) * args.v_heads + head) * args.v_dim + column] = out;
    }
  }
#pragma unroll
  for (int i = 0; i < kPerGroup; ++i) {
    int k = g * kPerGroup + i;
    if (valid && k < args.k_dim) state[static_cast<size_t>(k) * args.v_dim] = memory[i];
  }
}

}  // namespace

int DeltaNet(const DeltaNetArgs& args, Stream stream) {
  if (args.k_dim > kMaxK || args.k_dim % 4 != 0 || args.v_dim % 4 != 0 || args.k_heads < 1 ||
      args.v_heads % args.k_heads != 0 || (args.longest > kDeltaChunk && args.v_dim > kMaxK)) {
    return static_cast<int>(cudaErrorInvalidValue);
  }
  if (args.rows == 0 || args.sequences == 0) return 0;
  int channels = 2 * args.k_heads * args.k_dim + args.v_heads * args.v_dim;
  ConvolutionKernel<<<dim3(CeilDiv(channels, 256), CeilDiv(args.rows, kConvRows), args.sequences),
                      256, 0, stream>>>(args, channels);
  NormalizeKernel<<<CeilDiv(args.rows * 2 * args.k_heads, 8), 256, 0, stream>>>(args, channels);
  RecurrenceKernel<<<dim3(CeilDiv(args.v_dim, kColumns), args.v_heads, args.sequences), kThreads, 0,
                     stream>>>(args, channels);
  return args.longest > kDeltaChunk ? DeltaNetChunks(args, channels, stream) : LastLaunch();
}

}  // namespace packtrain::cuda

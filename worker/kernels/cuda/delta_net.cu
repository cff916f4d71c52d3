// Gated DeltaNet: short convolution, normalisation of q and k, and the recurrence token by token.
// The state is read once and written once per ubatch, so a token of a longer ubatch costs no
// memory traffic of its own; results do not depend on how tokens are cut into ubatches.

#include "worker/kernels/cuda/device.cuh"

namespace packtrain::cuda {
namespace {

constexpr int kMaxK = 128, kGroups = 4, kPerGroup = kMaxK / kGroups, kColumns = 32;

// A thread per (channel, sequence).
__global__ void __launch_bounds__(256) ConvolutionKernel(DeltaNetArgs args, int channels) {
  int c = blockIdx.x * 256 + threadIdx.x, s = blockIdx.y;
  if (c >= channels) return;
  float* state = args.conv_state + static_cast<size_t>(args.slot[s]) * 3 * channels + c;
  float4 w = reinterpret_cast<const float4*>(args.conv_weight)[c];
  float a = state[0], b = state[channels], d = state[2 * static_cast<size_t>(channels)];
  for (int row = args.row_offset[s]; row < args.row_offset[s + 1]; ++row) {
    float u = args.u[static_cast<size_t>(row) * channels + c];
    float y = fmaf(w.w, u, fmaf(w.z, d, fmaf(w.y, b, w.x * a)));
    args.qkv[static_cast<size_t>(row) * channels + c] = Silu(y);
    a = b, b = d, d = u;
  }
  state[0] = a, state[channels] = b, state[2 * static_cast<size_t>(channels)] = d;
}

// q and k heads to unit length, q also divided by sqrt(k_dim). A warp per (row, head).
__global__ void __launch_bounds__(32) NormalizeKernel(DeltaNetArgs args, int channels) {
  float* v = args.qkv + static_cast<size_t>(blockIdx.x) * channels + blockIdx.y * args.k_dim;
  float sum = 0;
  for (int i = threadIdx.x; i < args.k_dim; i += 32) sum = fmaf(v[i], v[i], sum);
  float scale = 1.0f / sqrtf(WarpSum(sum) + args.eps);
  if (blockIdx.y < args.k_heads) scale /= sqrtf(static_cast<float>(args.k_dim));
  for (int i = threadIdx.x; i < args.k_dim; i += 32) v[i] *= scale;
}

// A block per (32 columns of a head's state, head, sequence); columns do not interact. Lane
// 4 c + g of a warp holds rows 32 g .. + 31 of its column c (8 columns a warp).
__global__ void __launch_bounds__(128) RecurrenceKernel(DeltaNetArgs args, int channels) {
  // A word of padding per group keeps the groups in different banks.
  __shared__ float shared_k[2][kMaxK + kGroups], shared_q[2][kMaxK + kGroups];
  int head = blockIdx.y, s = blockIdx.z;
  int g = threadIdx.x % kGroups, column = blockIdx.x * kColumns + threadIdx.x / kGroups;
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
  int v_at = 2 * args.k_heads * args.k_dim + head * args.v_dim + column;
  float a = args.a[head], dt = args.dt_bias[head];

  int row = args.row_offset[s], end = args.row_offset[s + 1];
  float next_q = 0, next_k = 0, next_v = 0, next_beta = 0, next_alpha = 0;
  auto fetch = [&](int r) {
    if (r >= end) return;
    const float* from = args.qkv + static_cast<size_t>(r) * channels;
    bool in_head = static_cast<int>(threadIdx.x) < args.k_dim;
    next_q = in_head ? from[q_at + threadIdx.x] : 0;
    next_k = in_head ? from[k_at + threadIdx.x] : 0;
    next_v = valid ? from[v_at] : 0;
    next_beta = args.beta_logit[static_cast<size_t>(r) * args.v_heads + head];
    next_alpha = args.alpha[static_cast<size_t>(r) * args.v_heads + head];
  };
  fetch(row);
  for (int buffer = 0; row < end; ++row, buffer ^= 1) {
    int to = threadIdx.x + threadIdx.x / kPerGroup;
    shared_q[buffer][to] = next_q;
    shared_k[buffer][to] = next_k;
    float v = next_v, beta = Sigmoid(next_beta), x = next_alpha + dt;
    float decay = expf(a * (x > 20.0f ? x : log1pf(expf(x))));
    __syncthreads();
    fetch(row + 1);
    const float* k = shared_k[buffer] + g * (kPerGroup + 1);
    const float* q = shared_q[buffer] + g * (kPerGroup + 1);
    float predicted = 0;
#pragma unroll
    for (int i = 0; i < kPerGroup; ++i) {
      memory[i] *= decay;
      predicted = fmaf(memory[i], k[i], predicted);
    }
    predicted += __shfl_xor_sync(~0u, predicted, 1);
    predicted += __shfl_xor_sync(~0u, predicted, 2);
    float delta = beta * (v - predicted), out = 0;
#pragma unroll
    for (int i = 0; i < kPerGroup; ++i) {
      memory[i] = fmaf(k[i], delta, memory[i]);
      out = fmaf(memory[i], q[i], out);
    }
    out += __shfl_xor_sync(~0u, out, 1);
    out += __shfl_xor_sync(~0u, out, 2);
    if (g == 0 && valid)
      args.out[(static_cast<size_t>(row) * args.v_heads + head) * args.v_dim + column] = out;
  }
#pragma unroll
  for (int i = 0; i < kPerGroup; ++i) {
    int k = g * kPerGroup + i;
    if (valid && k < args.k_dim) state[static_cast<size_t>(k) * args.v_dim] = memory[i];
  }
}

}  // namespace

int DeltaNet(const DeltaNetArgs& args, Stream stream) {
  if (args.k_dim > kMaxK || args.k_heads < 1 || args.v_heads % args.k_heads != 0) {
    return static_cast<int>(cudaErrorInvalidValue);
  }
  if (args.rows == 0 || args.sequences == 0) return 0;
  int channels = 2 * args.k_heads * args.k_dim + args.v_heads * args.v_dim;
  ConvolutionKernel<<<dim3(CeilDiv(channels, 256), args.sequences), 256, 0, stream>>>(args,
                                                                                      channels);
  NormalizeKernel<<<dim3(args.rows, 2 * args.k_heads), 32, 0, stream>>>(args, channels);
  RecurrenceKernel<<<dim3(CeilDiv(args.v_dim, kColumns), args.v_heads, args.sequences), 128, 0,
                     stream>>>(args, channels);
  return LastLaunch();
}

}  // namespace packtrain::cuda

// Gated DeltaNet for few rows in one kernel: convolution, normalisation, recurrence, gated norm.
// Bits as DeltaNet and GatedRmsNorm give.

#include "worker/kernels/cuda/delta_net.cuh"

namespace packtrain::cuda {
namespace {

constexpr int kMaxDim = 128, kGroups = 4, kPerGroup = kMaxDim / kGroups;
constexpr int kThreads = kMaxDim * kGroups;
enum Role { kQ, kK, kV, kRoles };

struct StepLaunch {
  DeltaNetArgs args;
  DeltaNetStepArgs step;
};

// A block per (head, sequence). Thread 4 c + g holds rows 32 g .. + 31 of column c of the head's
// state; thread 128 r + i convolves channel i of the head's q, k or v.
__global__ void __launch_bounds__(kThreads) StepKernel(const __grid_constant__ StepLaunch launch) {
  const DeltaNetArgs& args = launch.args;
  __shared__ float convolved[kRoles][kMaxDim];
  // A word of padding per group keeps the groups in different banks.
  __shared__ float unit[2][kMaxDim + kGroups];
  __shared__ float outputs[kMaxDim], scratch[kMaxDim / 32];
  __shared__ bool last;
  int head = blockIdx.x, s = blockIdx.y, tid = threadIdx.x, warp = tid / 32, lane = tid % 32;
  int g = tid % kGroups, column = tid / kGroups, k_head = head % args.k_heads;
  int channels = 2 * args.k_heads * args.k_dim + args.v_heads * args.v_dim;
  LetNextBegin();

  // The states are those that the last step left: no need to wait for this step's kernels. Not
  // through the first level cache, which may be older.
  int slot = __ldcg(args.slot + s);
  float* state = args.state +
                 (static_cast<size_t>(slot) * args.v_heads + head) * args.k_dim * args.v_dim +
                 column;
  float memory[kPerGroup];
#pragma unroll
  for (int i = 0; i < kPerGroup; ++i) {
    int k = g * kPerGroup + i;
    bool valid = column < args.v_dim && k < args.k_dim;
    memory[i] = valid ? __ldcg(state + static_cast<size_t>(k) * args.v_dim) : 0;
  }
  int role = tid / kMaxDim, i = tid % kMaxDim;
  bool convolves = role < kRoles && i < (role == kV ? args.v_dim : args.k_dim);
  int channel = role == kQ   ? k_head * args.k_dim + i
                : role == kK ? (args.k_heads + k_head) * args.k_dim + i
                             : 2 * args.k_heads * args.k_dim + head * args.v_dim + i;
  float* conv = args.conv_state + static_cast<size_t>(slot) * 3 * channels + channel;
  float4 w = {};
  float a = 0, b = 0, d = 0;
  if (convolves) {
    w = reinterpret_cast<const float4*>(args.conv_weight)[channel];
    a = __ldcg(conv), b = __ldcg(conv + channels), d = __ldcg(conv + 2 * channels);
  }
  float decay_rate = args.a[head], dt = args.dt_bias[head];
  float norm_weight = tid < args.v_dim ? launch.step.norm_weight[tid] : 0;
  AwaitPrevious();

  int begin = args.row_offset[s], end = args.row_offset[s + 1];
  for (int row = begin; row < end; ++row) {
    if (convolves) {
      float u = args.u[static_cast<size_t>(row) * channels + channel];
      convolved[role][i] = Silu(fmaf(w.w, u, fmaf(w.z, d, fmaf(w.y, b, w.x * a))));
      a = b, b = d, d = u;
    }
    float beta = Sigmoid(args.beta_logit[static_cast<size_t>(row) * args.v_heads + head]);
    float decay =
        expf(LogDecay(decay_rate, args.alpha[static_cast<size_t>(row) * args.v_heads + head], dt));
    float z = 0;
    if (tid < args.v_dim)
      z = launch.step.z[(static_cast<size_t>(row) * args.v_heads + head) * args.v_dim + tid];
    __syncthreads();
    if (row == begin && tid == 0) {
      // Heads share their q and k channels: who comes last, when all have read them, moves these
      // channels' states on.
      int32_t* arrived = launch.step.arrived + s * args.k_heads + k_head;
      __threadfence();
      last = atomicAdd(arrived, 1) + 1 == args.v_heads / args.k_heads;
      if (last) *arrived = 0;
    }
    if (warp < 2) {
      const float* from = convolved[warp];
      float sum = 0;
      for (int j = lane; j < args.k_dim; j += 32) sum = fmaf(from[j], from[j], sum);
      float scale = 1.0f / sqrtf(WarpSum(sum) + args.eps);
      if (warp == kQ) scale /= sqrtf(static_cast<float>(args.k_dim));
      for (int j = lane; j < kMaxDim; j += 32)
        unit[warp][j + j / kPerGroup] = j < args.k_dim ? from[j] * scale : 0;
    }
    __syncthreads();
    const float* q = unit[kQ] + g * (kPerGroup + 1);
    const float* k = unit[kK] + g * (kPerGroup + 1);
    float predicted = 0;
#pragma unroll
    for (int j = 0; j < kPerGroup; ++j) {
      memory[j] *= decay;
      predicted = fmaf(memory[j], k[j], predicted);
    }
    predicted += __shfl_xor_sync(~0u, predicted, 1);
    predicted += __shfl_xor_sync(~0u, predicted, 2);
    float v = column < args.v_dim ? convolved[kV][column] : 0;
    float delta = beta * (v - predicted), out = 0;
#pragma unroll
    for (int j = 0; j < kPerGroup; ++j) {
      memory[j] = fmaf(k[j], delta, memory[j]);
      out = fmaf(memory[j], q[j], out);
    }
    out += __shfl_xor_sync(~0u, out, 1);
    out += __shfl_xor_sync(~0u, out, 2);
    if (g == 0) outputs[column] = out;
    __syncthreads();

    float value = tid < args.v_dim ? outputs[tid] : 0;
    if (tid < args.v_dim) {
      float sum = WarpSum(value * value);
      if (lane == 0) scratch[warp] = sum;
    }
    __syncthreads();
    if (tid < args.v_dim) {
      float sum = WarpSum(lane < args.v_dim / 32 ? scratch[lane] : 0.0f);
      float scale = 1.0f / sqrtf(sum / static_cast<float>(args.v_dim) + args.eps);
      Emit(launch.step.out, row, args.v_heads * args.v_dim, head * args.v_dim + tid,
           value * scale * norm_weight * Silu(z));
    }
  }
#pragma unroll
  for (int j = 0; j < kPerGroup; ++j) {
    int k = g * kPerGroup + j;
    if (column < args.v_dim && k < args.k_dim)
      state[static_cast<size_t>(k) * args.v_dim] = memory[j];
  }
  if (convolves && (role == kV || last))
    conv[0] = a, conv[channels] = b, conv[2 * static_cast<size_t>(channels)] = d;
}

}  // namespace

int DeltaNetStep(const DeltaNetArgs& args, const DeltaNetStepArgs& step, Stream stream) {
  if (args.k_dim > kMaxDim || args.v_dim > kMaxDim || args.v_dim % 32 != 0 || args.k_heads < 1 ||
      args.v_heads % args.k_heads != 0) {
    return static_cast<int>(cudaErrorInvalidValue);
  }
  if (args.rows == 0 || args.sequences == 0) return 0;
  return Launch(StepKernel, dim3(args.v_heads, args.sequences), kThreads, 0, stream,
                StepLaunch{args, step});
}

}  // namespace packtrain::cuda

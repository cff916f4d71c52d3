// Norms, activations, RoPE: everything between the matrices.

#include "worker/kernels/cuda/device.cuh"

namespace packtrain::cuda {
namespace {

constexpr int kThreads = 256;

constexpr int kConverted = 4;  // values of a thread

// Rows one behind the other, so that short ones fill blocks too. A warp never has parts of two rows
// of n % 32 == 0 values.
__global__ void __launch_bounds__(kThreads)
    ConvertKernel(const float* x, int64_t count, int n, int stride, ActivationOut out) {
  LetNextBegin();
  AwaitPrevious();
#pragma unroll
  for (int k = 0; k < kConverted; ++k) {
    int64_t at = (int64_t{blockIdx.x} * kConverted + k) * kThreads + threadIdx.x;
    if (at >= count) break;
    int64_t row = at / n;
    int i = static_cast<int>(at - row * n);
    Emit(out, row, n, i, x[row * stride + i]);
  }
}

// A block per row, kPer values a thread: all loads are under way at once.
template <int kPer>
__global__ void __launch_bounds__(1024)
    RmsNormKernel(float* h, int stride, const float* delta, const float* weight, float eps, int n,
                  ActivationOut out) {
  __shared__ float scratch[33];
  float* row = h + static_cast<size_t>(blockIdx.x) * stride;
  const float* d = delta != nullptr ? delta + static_cast<size_t>(blockIdx.x) * n : nullptr;
  float v[kPer], w[kPer];
  LetNextBegin();
#pragma unroll
  for (int k = 0; k < kPer; ++k) {
    int i = threadIdx.x + k * blockDim.x;
    w[k] = i < n ? weight[i] : 0.0f;
  }
  AwaitPrevious();
#pragma unroll
  for (int k = 0; k < kPer; ++k) {
    int i = threadIdx.x + k * blockDim.x;
    v[k] = i < n ? row[i] : 0.0f;
  }
  if (d != nullptr) {
#pragma unroll
    for (int k = 0; k < kPer; ++k) {
      int i = threadIdx.x + k * blockDim.x;
      v[k] += i < n ? d[i] : 0.0f;
    }
#pragma unroll
    for (int k = 0; k < kPer; ++k) {
      int i = threadIdx.x + k * blockDim.x;
      if (i < n) row[i] = v[k];
    }
  }
  float sum = 0;
#pragma unroll
  for (int k = 0; k < kPer; ++k) sum = fmaf(v[k], v[k], sum);
  float scale = 1.0f / sqrtf(BlockSum(sum, scratch) / static_cast<float>(n) + eps);
#pragma unroll
  for (int k = 0; k < kPer; ++k) {
    int i = threadIdx.x + k * blockDim.x;
    if (i < n) Emit(out, blockIdx.x, n, i, v[k] * scale * w[k]);
  }
}

__global__ void __launch_bounds__(128)
    LayerNormKernel(const float* x, float* y, int stride, const float* weight, const float* bias,
                    float eps, int n) {
  __shared__ float scratch[33];
  LetNextBegin();
  AwaitPrevious();
  const float* from = x + static_cast<size_t>(blockIdx.x) * stride;
  float* to = y + static_cast<size_t>(blockIdx.x) * stride;
  float sum = 0;
  for (int i = threadIdx.x; i < n; i += blockDim.x) sum += from[i];
  float mean = BlockSum(sum, scratch) / static_cast<float>(n);
  sum = 0;
  for (int i = threadIdx.x; i < n; i += blockDim.x) {
    float v = from[i] - mean;
    sum = fmaf(v, v, sum);
  }
  float scale = 1.0f / sqrtf(BlockSum(sum, scratch) / static_cast<float>(n) + eps);
  for (int i = threadIdx.x; i < n; i += blockDim.x)
    to[i] = fmaf((from[i] - mean) * scale, weight[i], bias[i]);
}

__global__ void __launch_bounds__(kThreads)
    SwiGluKernel(const float* gate, const float* up, int stride, int n, ActivationOut out) {
  LetNextBegin();
  AwaitPrevious();
  size_t row = blockIdx.x;
  int i = blockIdx.y * kThreads + threadIdx.x;
  if (i < n) Emit(out, row, n, i, Silu(gate[row * stride + i]) * up[row * stride + i]);
}

__global__ void __launch_bounds__(kThreads)
    SigmoidGateKernel(const float* x, const float* gate, int gate_stride, int gate_head_stride,
                      int head_dim, int n, ActivationOut out) {
  LetNextBegin();
  AwaitPrevious();
  size_t row = blockIdx.x;
  int i = blockIdx.y * kThreads + threadIdx.x;
  if (i >= n) return;
  float g =
      gate[row * gate_stride + static_cast<size_t>(i / head_dim) * gate_head_stride + i % head_dim];
  Emit(out, row, n, i, x[row * n + i] * Sigmoid(g));
}

__global__ void __launch_bounds__(kThreads)
    AddScaledKernel(float* y, const float* x, const float* scale_logit, int n) {
  LetNextBegin();
  AwaitPrevious();
  size_t row = blockIdx.x;
  int i = blockIdx.y * kThreads + threadIdx.x;
  float scale = scale_logit != nullptr ? Sigmoid(scale_logit[row]) : 1.0f;
  if (i < n) y[row * n + i] = fmaf(x[row * n + i], scale, y[row * n + i]);
}

__global__ void __launch_bounds__(kThreads) AddBiasKernel(float* y, const float* bias, int n) {
  LetNextBegin();
  AwaitPrevious();
  int i = blockIdx.y * kThreads + threadIdx.x;
  if (i < n) y[blockIdx.x * static_cast<size_t>(n) + i] += bias[i];
}

__global__ void RopeTableKernel(const int32_t* positions, const double* frequencies,
                                float magnitude, int rows, int pairs, float2* cos_sin) {
  int i = blockIdx.x * kThreads + threadIdx.x;
  if (i >= rows * pairs) return;
  double sine, cosine;
  sincos(positions[i / pairs] * frequencies[i % pairs], &sine, &cosine);
  cos_sin[i] =
      make_float2(static_cast<float>(cosine) * magnitude, static_cast<float>(sine) * magnitude);
}

__global__ void RopeKernel(float* x, int heads, int row_stride, int head_stride, RopeKind kind,
                           const float2* cos_sin, int pairs) {
  LetNextBegin();
  AwaitPrevious();
  size_t row = blockIdx.x;
  for (int i = blockIdx.y * kThreads + threadIdx.x; i < heads * pairs; i += gridDim.y * kThreads) {
    int pair = i % pairs;
    float* v = x + row * row_stride + static_cast<size_t>(i / pairs) * head_stride;
    int first = kind == RopeKind::kNorm ? 2 * pair : pair;
    int second = kind == RopeKind::kNorm ? 2 * pair + 1 : pair + pairs;
    float2 r = cos_sin[row * pairs + pair];
    float a = v[first], b = v[second];
    v[first] = fmaf(a, r.x, -(b * r.y));
    v[second] = fmaf(a, r.y, b * r.x);
  }
}

// A thread per value of the head.
__global__ void GatedRmsNormKernel(const float* x, const float* z, const float* weight, float eps,
                                   int heads, ActivationOut out) {
  __shared__ float scratch[33];
  LetNextBegin();
  AwaitPrevious();
  size_t head = blockIdx.x, i = head * blockDim.x + threadIdx.x;
  int dim = blockDim.x;
  float v = x[i];
  float scale = 1.0f / sqrtf(BlockSum(v * v, scratch) / static_cast<float>(dim) + eps);
  float y = v * scale * weight[threadIdx.x] * Silu(z[i]);
  Emit(out, head / heads, heads * dim, static_cast<int>(head % heads) * dim + threadIdx.x, y);
}

}  // namespace

int Convert(const float* x, int rows, int n, int stride, ActivationOut out, Stream stream) {
  if (n % 32 != 0 && out.q8 != nullptr) return static_cast<int>(cudaErrorInvalidValue);
  if (rows == 0 || n == 0) return 0;
  const int64_t count = int64_t{rows} * n;
  const auto blocks =
      static_cast<unsigned>((count + kThreads * kConverted - 1) / (kThreads * kConverted));
  return Launch(ConvertKernel, blocks, kThreads, 0, stream, x, count, n, stride, out);
}

int RmsNorm(float* h, int stride, const float* delta, const float* weight, float eps, int rows,
            int n, ActivationOut out, Stream stream) {
  // A thread holds at most 16 values.
  if ((n % 32 != 0 && out.q8 != nullptr) || n > 16384) {
    return static_cast<int>(cudaErrorInvalidValue);
  }
  if (rows == 0) return 0;
  // The number of threads fixes the order of the sum, so it depends on n alone.
  int threads = n >= 2048 ? 1024 : (n >= 1024 ? 256 : 128);
  const auto kernel = n <= 2 * threads   ? RmsNormKernel<2>
                      : n <= 8 * threads ? RmsNormKernel<8>
                                         : RmsNormKernel<16>;
  return Launch(kernel, rows, threads, 0, stream, h, stride, delta, weight, eps, n, out);
}

int LayerNorm(const float* x, float* y, int stride, const float* weight, const float* bias,
              float eps, int rows, int n, Stream stream) {
  if (rows == 0) return 0;
  return Launch(LayerNormKernel, rows, 128, 0, stream, x, y, stride, weight, bias, eps, n);
}

int SwiGlu(const float* gate, const float* up, int stride, int rows, int n, ActivationOut out,
           Stream stream) {
  if (n % 32 != 0 && out.q8 != nullptr) return static_cast<int>(cudaErrorInvalidValue);
  if (rows == 0) return 0;
  return Launch(SwiGluKernel, dim3(rows, CeilDiv(n, kThreads)), kThreads, 0, stream, gate, up,
                stride, n, out);
}

int SigmoidGate(const float* x, const float* gate, int gate_stride, int gate_head_stride,
                int head_dim, int rows, int n, ActivationOut out, Stream stream) {
  if (n % 32 != 0 && out.q8 != nullptr) return static_cast<int>(cudaErrorInvalidValue);
  if (rows == 0) return 0;
  return Launch(SigmoidGateKernel, dim3(rows, CeilDiv(n, kThreads)), kThreads, 0, stream, x, gate,
                gate_stride, gate_head_stride, head_dim, n, out);
}

int AddScaled(float* y, const float* x, const float* scale_logit, int rows, int n, Stream stream) {
  if (rows == 0) return 0;
  return Launch(AddScaledKernel, dim3(rows, CeilDiv(n, kThreads)), kThreads, 0, stream, y, x,
                scale_logit, n);
}

int AddBias(float* y, const float* bias, int rows, int n, Stream stream) {
  if (rows == 0) return 0;
  return Launch(AddBiasKernel, dim3(rows, CeilDiv(n, kThreads)), kThreads, 0, stream, y, bias, n);
}

int RopeTable(const int32_t* positions, const double* frequencies, float magnitude, int rows,
              int pairs, float* cos_sin, Stream stream) {
  if (rows == 0) return 0;
  RopeTableKernel<<<CeilDiv(rows * pairs, kThreads), kThreads, 0, stream>>>(
      positions, frequencies, magnitude, rows, pairs, reinterpret_cast<float2*>(cos_sin));
  return LastLaunch();
}

int Rope(float* x, int rows, int heads, int row_stride, int head_stride, RopeKind kind,
         const float* cos_sin, int pairs, Stream stream) {
  if (rows == 0) return 0;
  dim3 grid(rows, std::min(8, CeilDiv(heads * pairs, kThreads)));
  return Launch(RopeKernel, grid, kThreads, 0, stream, x, heads, row_stride, head_stride, kind,
                reinterpret_cast<const float2*>(cos_sin), pairs);
}

int GatedRmsNorm(const float* x, const float* z, const float* weight, float eps, int rows,
                 int heads, int dim, ActivationOut out, Stream stream) {
  if (dim > 1024 || (out.q8 != nullptr && dim % 32 != 0))
    return static_cast<int>(cudaErrorInvalidValue);
  if (rows == 0) return 0;
  return Launch(GatedRmsNormKernel, rows * heads, dim, 0, stream, x, z, weight, eps, heads, out);
}

}  // namespace packtrain::cuda

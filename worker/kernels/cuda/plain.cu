// F32, F16 and BF16 weights: products in f32 with f32 activations.

#include "worker/kernels/cuda/device.cuh"

namespace packtrain::cuda {
namespace {

struct F32 {
  static constexpr TensorType kType = TensorType::kF32;
  using Element = float;
  using Four = float4;
  __device__ static float Get(float v) { return v; }
  __device__ static float4 Get4(const float4& v) { return v; }
};
struct F16 {
  static constexpr TensorType kType = TensorType::kF16;
  using Element = uint16_t;
  using Four = ushort4;
  __device__ static float Get(uint16_t v) { return __half2float(__ushort_as_half(v)); }
  __device__ static float4 Get4(const ushort4& v) {
    return {Get(v.x), Get(v.y), Get(v.z), Get(v.w)};
  }
};
struct BF16 {
  static constexpr TensorType kType = TensorType::kBF16;
  using Element = uint16_t;
  using Four = ushort4;
  __device__ static float Get(uint16_t v) { return __uint_as_float(uint32_t{v} << 16); }
  __device__ static float4 Get4(const ushort4& v) {
    return {Get(v.x), Get(v.y), Get(v.z), Get(v.w)};
  }
};

constexpr int kThreads = 128;

// A block per row (and pair); thread i takes the fours i, i + 128, ... of the row.
template <class T, int kTokens, bool kFours>
__global__ void __launch_bounds__(kThreads) MatVecKernel(MatVecArgs args) {
  __shared__ float scratch[33];
  int row = blockIdx.x, part = 0;
  LetNextBegin();
  while (row >= args.parts[part].rows) row -= args.parts[part++].rows;
  if (!args.experts && threadIdx.x < 32) {
    constexpr int kBytes = sizeof(typename T::Element);
    PrefetchByWarp(static_cast<const uint8_t*>(args.parts[part].w) +
                       static_cast<size_t>(row) * args.n * kBytes,
                   args.n * kBytes);
  }
  AwaitPrevious();
  int64_t expert = 0, y_row = 0;
  auto x = static_cast<const float*>(args.x);
  if (args.experts) {
    int pair = blockIdx.y;
    expert = args.ids != nullptr ? args.ids[pair] : pair % args.num_experts;
    if (expert >= 0 && args.slot != nullptr) expert = args.slot[expert];
    if (expert < 0) return;
    x += static_cast<size_t>(pair / args.pairs_per_row) * args.n;
    y_row = pair;
  }
  const MatVecPart& p = args.parts[part];
  auto w = reinterpret_cast<const typename T::Element*>(static_cast<const char*>(p.w) +
                                                        expert * p.expert_stride) +
           static_cast<size_t>(row) * args.n;
  float acc[kTokens] = {};
  if constexpr (kFours) {
    auto w4 = reinterpret_cast<const typename T::Four*>(w);
#pragma unroll 4
    for (int i = threadIdx.x; i < args.n / 4; i += kThreads) {
      float4 v = T::Get4(__ldg(w4 + i));
#pragma unroll
      for (int t = 0; t < kTokens; ++t) {
        if (kTokens > 1 && t >= args.tokens) break;
        float4 a = reinterpret_cast<const float4*>(x + static_cast<size_t>(t) * args.n)[i];
        acc[t] = fmaf(v.x, a.x, acc[t]);
        acc[t] = fmaf(v.y, a.y, acc[t]);
        acc[t] = fmaf(v.z, a.z, acc[t]);
        acc[t] = fmaf(v.w, a.w, acc[t]);
      }
    }
  } else {
    for (int i = threadIdx.x; i < args.n; i += kThreads) {
      for (int t = 0; t < kTokens; ++t) {
        if (t < args.tokens || kTokens == 1) {
          acc[t] = fmaf(T::Get(w[i]), x[static_cast<size_t>(t) * args.n + i], acc[t]);
        }
      }
    }
  }
#pragma unroll
  for (int t = 0; t < kTokens; ++t) {
    float sum = BlockSum(acc[t], scratch);
    if (threadIdx.x == 0 && (kTokens == 1 || t < args.tokens))
      p.y[(y_row + t) * (p.y_stride != 0 ? p.y_stride : p.rows) + row] = sum;
  }
}

template <class T, int kTokens>
int LaunchMatVec(const MatVecArgs& args, Stream stream) {
  int rows = 0;
  bool fours = args.n % 4 == 0;
  for (int p = 0; p < args.num_parts; ++p) {
    rows += args.parts[p].rows;
    size_t w = reinterpret_cast<size_t>(args.parts[p].w) | args.parts[p].expert_stride;
    fours = fours && w % sizeof(typename T::Four) == 0;
  }
  if (rows == 0 || args.tokens == 0) return 0;
  dim3 grid(rows, args.experts ? args.tokens : 1);
  return fours ? Launch(MatVecKernel<T, kTokens, true>, grid, kThreads, 0, stream, args)
               : Launch(MatVecKernel<T, kTokens, false>, grid, kThreads, 0, stream, args);
}

template <class T>
int MatVec(const MatVecArgs& args, Stream stream) {
  if (args.n <= 0 || args.num_parts < 1 || args.num_parts > kMaxMatVecParts ||
      (!args.experts && args.tokens > 8)) {
    return static_cast<int>(cudaErrorInvalidValue);
  }
  if (args.experts || args.tokens <= 1) return LaunchMatVec<T, 1>(args, stream);
  return LaunchMatVec<T, 8>(args, stream);
}

template <class T, bool kBf16>
__global__ void DecodeKernel(const typename T::Element* w, size_t count, const int32_t* row_ids,
                             int n, void* values) {
  for (size_t i = blockIdx.x * size_t{256} + threadIdx.x; i < count; i += gridDim.x * size_t{256}) {
    size_t from = row_ids != nullptr ? size_t(row_ids[i / n]) * n + i % n : i;
    float v = T::Get(w[from]);
    if constexpr (kBf16) {
      static_cast<uint16_t*>(values)[i] = __bfloat16_as_ushort(__float2bfloat16_rn(v));
    } else {
      static_cast<float*>(values)[i] = v;
    }
  }
}

template <class T, bool kBf16>
int Decode(const void* w, size_t count, const int32_t* row_ids, int n, void* values,
           Stream stream) {
  if (count == 0) return 0;
  int blocks = static_cast<int>(std::min<size_t>((count + 255) / 256, size_t(SmCount()) * 16));
  DecodeKernel<T, kBf16><<<blocks, 256, 0, stream>>>(static_cast<const typename T::Element*>(w),
                                                     count, row_ids, n, values);
  return LastLaunch();
}

template <class T>
constexpr WeightKernels Make() {
  return {T::kType,
          true,
          &MatVec<T>,
          nullptr,
          nullptr,
          nullptr,
          [](const void* w, size_t count, const int32_t* row_ids, int n, float* values,
             Stream stream) { return Decode<T, false>(w, count, row_ids, n, values, stream); },
          [](const void* w, size_t count, uint16_t* values, Stream stream) {
            return Decode<T, true>(w, count, nullptr, 0, values, stream);
          }};
}

}  // namespace

extern const WeightKernels kF32Kernels = Make<F32>();
extern const WeightKernels kF16Kernels = Make<F16>();
extern const WeightKernels kBF16Kernels = Make<BF16>();

}  // namespace packtrain::cuda

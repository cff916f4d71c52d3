#pragma once

// The kernels of a weight type, made from the description of its blocks (piece.cuh).

#include "worker/kernels/cuda/mat_mul.cuh"
#include "worker/kernels/cuda/piece.cuh"

namespace packtrain::cuda {

// ---------------------------------------------------------------------------------------------
// Decode: one thread per 32 weights.

template <class T, bool kBf16>
__global__ void __launch_bounds__(128)
    DecodeKernel(const uint8_t* w, size_t pieces, const int32_t* row_ids, int pieces_per_row,
                 void* values) {
  __shared__ uint32_t table[T::kTableWords + 1];
  for (int i = threadIdx.x; i < T::kTableWords; i += blockDim.x) table[i] = T::Table()[i];
  __syncthreads();
  constexpr int kSubs = T::kWeights / 32;
  for (size_t i = blockIdx.x * size_t{128} + threadIdx.x; i < pieces;
       i += gridDim.x * size_t{128}) {
    size_t from = i;
    if (row_ids != nullptr)
      from = size_t(row_ids[i / pieces_per_row]) * pieces_per_row + i % pieces_per_row;
    Piece p;
    T::Unpack(w + from / kSubs * T::kBytes, static_cast<int>(from % kSubs), table, &p);
    if constexpr (kBf16) {
      // By way of shared memory, so that lanes write next to each other; a row of 80 bytes puts
      // them in different banks.
      __shared__ uint4 staged[128][5];
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        uint32_t v[4];
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          __nv_bfloat162 pair =
              __floats2bfloat162_rn(Value<T>(p, 8 * c + 2 * k), Value<T>(p, 8 * c + 2 * k + 1));
          v[k] = *reinterpret_cast<uint32_t*>(&pair);
        }
        staged[threadIdx.x][c] = make_uint4(v[0], v[1], v[2], v[3]);
      }
      int lane = threadIdx.x % 32;
      int count = static_cast<int>(min(size_t{32}, pieces - (i - lane)));  // lanes at work
      unsigned active = ~0u >> (32 - count);
      __syncwarp(active);
      uint4* out = reinterpret_cast<uint4*>(static_cast<uint16_t*>(values) + (i - lane) * 32);
      for (int c = lane; c < count * 4; c += count)
        out[c] = staged[threadIdx.x - lane + c / 4][c % 4];
      __syncwarp(active);
    } else {
      float4* out = reinterpret_cast<float4*>(static_cast<float*>(values) + i * 32);
#pragma unroll
      for (int c = 0; c < 8; ++c) {
        out[c] = make_float4(Value<T>(p, 4 * c), Value<T>(p, 4 * c + 1), Value<T>(p, 4 * c + 2),
                             Value<T>(p, 4 * c + 3));
      }
    }
  }
}

// ---------------------------------------------------------------------------------------------
// MatVec: a group of L lanes (a power of two up to 32) walks a row, each lane 32 weights at a time;
// lanes then add up in a tree. L depends on n alone.
//
// Launch: 256 threads, pairs in y, as many blocks in x as the device holds (fewer for few rows).

inline constexpr int kMatVecWarps = 8;

// Rows that a group works on at once: activations are then loaded once for both, while registers
// last.
template <class T, int kTokens>
inline constexpr int kMatVecRows = kTokens > 2 ? 1 : T::kRowsAtOnce;

// acc[row][t] += the products of kRows pieces at place `sub` of their rows with token t of x (rows
// of n values, x_stride bytes apart). The activations are loaded once for all rows.
template <class T, int kTokens, int kRows>
__device__ inline void MultiplyPieces(const Piece* pieces, const uint8_t* x, int sub, int n,
                                      int x_stride, int tokens, float (*acc)[kTokens]) {
#pragma unroll
  for (int t = 0; t < kTokens; ++t) {
    if (kTokens > 1 && t >= tokens) break;
    const uint8_t* xt = x + static_cast<size_t>(t) * x_stride;
    // Not by the read-only path: the kernel in front may have written them while this one was on
    // the device already.
    int4 lo = reinterpret_cast<const int4*>(xt)[sub],
         hi = reinterpret_cast<const int4*>(xt + n / 2)[sub];
    float2 ds = reinterpret_cast<const float2*>(xt + n)[sub];
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const Piece& p = pieces[r];
      int dot0 = __dp4a(p.q[0], lo.x, 0), dot1 = __dp4a(p.q[4], hi.x, 0);
      dot0 = __dp4a(p.q[1], lo.y, dot0), dot1 = __dp4a(p.q[5], hi.y, dot1);
      dot0 = __dp4a(p.q[2], lo.z, dot0), dot1 = __dp4a(p.q[6], hi.z, dot1);
      dot0 = __dp4a(p.q[3], lo.w, dot0), dot1 = __dp4a(p.q[7], hi.w, dot1);
      float sum;
      if constexpr (T::kHalves) {
        sum = fmaf(p.scale[1], static_cast<float>(dot1), p.scale[0] * static_cast<float>(dot0));
      } else {
        sum = p.scale[0] * static_cast<float>(dot0 + dot1);
      }
      if constexpr (T::kMin && T::kHalves) {
        constexpr int kOnes = 0x01010101;
        int sum0 =
            __dp4a(kOnes, lo.x, __dp4a(kOnes, lo.y, __dp4a(kOnes, lo.z, __dp4a(kOnes, lo.w, 0))));
        int sum1 =
            __dp4a(kOnes, hi.x, __dp4a(kOnes, hi.y, __dp4a(kOnes, hi.z, __dp4a(kOnes, hi.w, 0))));
        sum = fmaf(p.min[0], static_cast<float>(sum0), sum);
        sum = fmaf(p.min[1], static_cast<float>(sum1), sum);
      }
      acc[r][t] = fmaf(ds.x, sum, acc[r][t]);
      if constexpr (T::kMin && !T::kHalves) acc[r][t] = fmaf(ds.y, p.min[0], acc[r][t]);
    }
  }
}

// How a warp walks rows of n weights: `lanes` to a row. Depends on n alone.
struct RowWalk {
  int n, lanes, subs, row_bytes, x_stride;
};

template <class T>
RowWalk MakeRowWalk(int n) {
  RowWalk walk;
  walk.n = n;
  walk.subs = n / 32;
  walk.lanes = 32;
  while (walk.lanes > 4 && walk.lanes > walk.subs) walk.lanes /= 2;
  walk.row_bytes = n / T::kWeights * T::kBytes;
  walk.x_stride = static_cast<int>(Q8RowBytes(n));
  return walk;
}

// acc[r][t] := row w[r] times token t, known to every lane of the row. All lanes of the warp call.
template <class T, int kTokens, int kRows>
__device__ inline void DotRows(const RowWalk& walk, const uint8_t* (&w)[kRows], const uint8_t* x,
                               int tokens, const uint32_t* table, float (&acc)[kRows][kTokens]) {
  constexpr int kSubs = T::kWeights / 32;
  int g = threadIdx.x % walk.lanes;
  int full_steps = walk.subs / walk.lanes, step_bytes = walk.lanes / kSubs * T::kBytes;
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    w[r] += g / kSubs * T::kBytes;
#pragma unroll
    for (int t = 0; t < kTokens; ++t) acc[r][t] = 0;
  }
#pragma unroll kTokens == 1 ? 2 : 1
  for (int step = 0; step < full_steps; ++step) {
    Piece pieces[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      T::Unpack(w[r], g % kSubs, table, &pieces[r]);
      w[r] += step_bytes;
    }
    MultiplyPieces<T, kTokens, kRows>(pieces, x, step * walk.lanes + g, walk.n, walk.x_stride,
                                      tokens, acc);
  }
  if (int sub = full_steps * walk.lanes + g; sub < walk.subs) {
    Piece pieces[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) T::Unpack(w[r], g % kSubs, table, &pieces[r]);
    MultiplyPieces<T, kTokens, kRows>(pieces, x, sub, walk.n, walk.x_stride, tokens, acc);
  }
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
#pragma unroll
    for (int t = 0; t < kTokens; ++t) {
      for (int o = walk.lanes / 2; o > 0; o >>= 1) acc[r][t] += __shfl_xor_sync(~0u, acc[r][t], o);
    }
  }
}

template <class T>
__device__ inline void LoadTable(uint32_t* table) {
  if constexpr (T::kTableWords > 0) {
    for (int i = threadIdx.x; i < T::kTableWords; i += blockDim.x) table[i] = T::Table()[i];
    __syncthreads();
  }
}

struct MatVecLaunch {
  MatVecArgs args;
  RowWalk walk;
  int total_rows;  // of all parts
};

template <class T, int kTokens>
__global__ void __launch_bounds__(kMatVecWarps * 32)
    MatVecKernel(const __grid_constant__ MatVecLaunch launch) {
  constexpr int kRows = kMatVecRows<T, kTokens>;
  __shared__ uint32_t table[T::kTableWords + 1];
  const MatVecArgs& args = launch.args;
  LetNextBegin();
  LoadTable<T>(table);
  int lanes = launch.walk.lanes, group = threadIdx.x % 32 / lanes;
  int rows_per_warp = 32 / lanes * kRows;
  int first = (blockIdx.x * kMatVecWarps + threadIdx.x / 32) * rows_per_warp;
  if (!args.experts && first < launch.total_rows) {
    int row = first, part = 0;
    while (row >= args.parts[part].rows) row -= args.parts[part++].rows;
    PrefetchByWarp(static_cast<const uint8_t*>(args.parts[part].w) +
                       static_cast<size_t>(row) * launch.walk.row_bytes,
                   min(rows_per_warp, args.parts[part].rows - row) * launch.walk.row_bytes);
  }
  AwaitPrevious();

  int64_t expert = 0, y_row = 0;
  const uint8_t* x = static_cast<const uint8_t*>(args.x);
  if (args.experts) {
    int pair = blockIdx.y;
    expert = args.ids != nullptr ? args.ids[pair] : pair % args.num_experts;
    if (expert >= 0 && args.slot != nullptr) expert = args.slot[expert];
    if (expert < 0) return;
    x += static_cast<size_t>(pair / args.pairs_per_row) * launch.walk.x_stride;
    y_row = pair;
  }
  for (int base = first; base < launch.total_rows;
       base += gridDim.x * kMatVecWarps * rows_per_warp) {
    float acc[kRows][kTokens];
    const uint8_t* w[kRows];
    float* y[kRows];
    int y_stride[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      // Past the last row its bytes are read once more and the result dropped.
      int row = base + group * kRows + r, part = 0;
      bool valid = row < launch.total_rows;
      if (!valid) row = launch.total_rows - 1;
      while (row >= args.parts[part].rows) row -= args.parts[part++].rows;
      const MatVecPart& p = args.parts[part];
      w[r] = static_cast<const uint8_t*>(p.w) + expert * p.expert_stride +
             static_cast<size_t>(row) * launch.walk.row_bytes;
      y_stride[r] = p.y_stride != 0 ? p.y_stride : p.rows;
      y[r] = valid ? p.y + y_row * y_stride[r] + row : nullptr;
    }
    DotRows<T, kTokens, kRows>(launch.walk, w, x, args.tokens, table, acc);
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
#pragma unroll
      for (int t = 0; t < kTokens; ++t) {
        if (threadIdx.x % lanes == 0 && y[r] != nullptr && (kTokens == 1 || t < args.tokens))
          y[r][t * y_stride[r]] = acc[r][t];
      }
    }
  }
}

template <class T, int kTokens>
int LaunchMatVec(const MatVecLaunch& launch, Stream stream) {
  // Blocks that the device holds at once; negative: an error code.
  static const int kResident = [] {
    int blocks = 0;
    cudaError_t code = cudaOccupancyMaxActiveBlocksPerMultiprocessor(
        &blocks, MatVecKernel<T, kTokens>, kMatVecWarps * 32, 0);
    return code == cudaSuccess ? blocks * SmCount() : -static_cast<int>(code);
  }();
  if (kResident <= 0) return kResident < 0 ? -kResident : static_cast<int>(cudaErrorInvalidValue);
  int rows_per_block = kMatVecWarps * 32 / launch.walk.lanes * kMatVecRows<T, kTokens>;
  dim3 grid(1, launch.args.experts ? launch.args.tokens : 1);
  grid.x = std::min(CeilDiv(launch.total_rows, rows_per_block),
                    std::max(1, CeilDiv(kResident, static_cast<int>(grid.y))));
  return Launch(MatVecKernel<T, kTokens>, grid, kMatVecWarps * 32, 0, stream, launch);
}

template <class T>
int MatVec(const MatVecArgs& args, Stream stream) {
  if (args.n <= 0 || args.n % T::kWeights != 0 || args.num_parts < 1 ||
      args.num_parts > kMaxMatVecParts || args.tokens < 0 || (!args.experts && args.tokens > 8)) {
    return static_cast<int>(cudaErrorInvalidValue);
  }
  MatVecLaunch launch;
  launch.args = args;
  launch.walk = MakeRowWalk<T>(args.n);
  launch.total_rows = 0;
  for (int p = 0; p < args.num_parts; ++p) launch.total_rows += args.parts[p].rows;
  if (args.tokens == 0 || launch.total_rows == 0) return 0;
  if (args.experts || args.tokens == 1) return LaunchMatVec<T, 1>(launch, stream);
  if (args.tokens == 2) return LaunchMatVec<T, 2>(launch, stream);
  if (args.tokens <= 4) return LaunchMatVec<T, 4>(launch, stream);
  return LaunchMatVec<T, 8>(launch, stream);
}

// ---------------------------------------------------------------------------------------------
// Feed-forward of few tokens: the products with what stands between them.

inline constexpr int kFfnThreads = 512, kFfnWarps = kFfnThreads / 32;

struct GateUpLaunch {
  GateUpArgs args;
  RowWalk walk;
};

// A block per 32 inner values of a pair: one block of its Q8 row.
template <class T>
__global__ void __launch_bounds__(kFfnThreads)
    GateUpKernel(const __grid_constant__ GateUpLaunch launch) {
  __shared__ uint32_t table[T::kTableWords + 1];
  __shared__ float values[32];
  const GateUpArgs& args = launch.args;
  const RowWalk& walk = launch.walk;
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32, base = blockIdx.x * 32;
  int groups = 32 / walk.lanes;
  LetNextBegin();
  LoadTable<T>(table);
  if (args.ids == nullptr) {
    for (int i = warp; i < 32; i += kFfnWarps) {
      size_t at = static_cast<size_t>(base + i) * walk.row_bytes;
      PrefetchByWarp(static_cast<const uint8_t*>(args.gate) + at, walk.row_bytes);
      PrefetchByWarp(static_cast<const uint8_t*>(args.up) + at, walk.row_bytes);
    }
  }
  AwaitPrevious();
  int pair = blockIdx.y, expert = args.ids != nullptr ? args.ids[pair] : 0;
  if (expert < 0) return;
  const uint8_t* x = static_cast<const uint8_t*>(args.x) +
                     static_cast<size_t>(pair / args.pairs_per_row) * walk.x_stride;
  for (int first = warp * groups; first < 32; first += kFfnWarps * groups) {
    int i = first + lane / walk.lanes;
    size_t at = static_cast<size_t>(expert) * args.expert_stride +
                static_cast<size_t>(base + i) * walk.row_bytes;
    const uint8_t* w[2] = {static_cast<const uint8_t*>(args.gate) + at,
                           static_cast<const uint8_t*>(args.up) + at};
    float acc[2][1];
    DotRows<T, 1, 2>(walk, w, x, 1, table, acc);
    if (lane % walk.lanes == 0) values[i] = Silu(acc[0][0]) * acc[1][0];
  }
  __syncthreads();
  if (warp == 0) Emit(args.out, pair, args.rows, base + lane, values[lane]);
}

template <class T>
int GateUp(const GateUpArgs& args, Stream stream) {
  if (args.n <= 0 || args.n % T::kWeights != 0 || args.rows % 32 != 0 || args.pairs_per_row < 1)
    return static_cast<int>(cudaErrorInvalidValue);
  if (args.pairs == 0 || args.rows == 0) return 0;
  GateUpLaunch launch{args, MakeRowWalk<T>(args.n)};
  return Launch(GateUpKernel<T>, dim3(args.rows / 32, args.pairs), kFfnThreads, 0, stream, launch);
}

inline constexpr int kDownRows = 8;  // of a block

struct DownLaunch {
  DownArgs args;
  RowWalk walk;
};

// A block per kDownRows values of a token: a group of lanes per pick and two rows.
template <class T>
__global__ void __launch_bounds__(kFfnThreads)
    DownKernel(const __grid_constant__ DownLaunch launch) {
  __shared__ uint32_t table[T::kTableWords + 1];
  __shared__ float partial[kMaxPicks][kDownRows];
  const DownArgs& args = launch.args;
  const RowWalk& walk = launch.walk;
  LetNextBegin();
  LoadTable<T>(table);
  AwaitPrevious();
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32, groups = 32 / walk.lanes;
  int base = blockIdx.x * kDownRows, token = blockIdx.y;
  const int32_t* ids = args.ids + static_cast<size_t>(token) * args.top_k;
  int tasks = args.top_k * (kDownRows / 2);
  for (int first = warp * groups; first < tasks; first += kFfnWarps * groups) {
    // Past the last task it is done once more, past the last row that.
    int task = min(first + lane / walk.lanes, tasks - 1);
    int pick = task / (kDownRows / 2), r = task % (kDownRows / 2) * 2;
    const uint8_t* x = static_cast<const uint8_t*>(args.x) +
                       static_cast<size_t>(token * args.top_k + pick) * walk.x_stride;
    const uint8_t* expert = static_cast<const uint8_t*>(args.w) +
                            static_cast<size_t>(max(ids[pick], 0)) * args.expert_stride;
    const uint8_t* w[2] = {
        expert + static_cast<size_t>(min(base + r, args.rows - 1)) * walk.row_bytes,
        expert + static_cast<size_t>(min(base + r + 1, args.rows - 1)) * walk.row_bytes};
    float acc[2][1];
    DotRows<T, 1, 2>(walk, w, x, 1, table, acc);
    if (lane % walk.lanes == 0) partial[pick][r] = acc[0][0], partial[pick][r + 1] = acc[1][0];
  }
  __syncthreads();
  int i = base + threadIdx.x;
  if (threadIdx.x >= kDownRows || i >= args.rows) return;
  float sum = 0;
  for (int k = 0; k < args.top_k; ++k) {
    if (ids[k] >= 0) sum = fmaf(args.weights[token * args.top_k + k], partial[k][threadIdx.x], sum);
  }
  size_t at = static_cast<size_t>(token) * args.rows + i;
  if (args.shared != nullptr) {
    float scale = args.shared_logit != nullptr
                      ? Sigmoid(args.shared_logit[static_cast<size_t>(token)])
                      : 1.0f;
    sum = fmaf(args.shared[at], scale, sum);
  }
  args.y[at] = sum;
}

template <class T>
int Down(const DownArgs& args, Stream stream) {
  if (args.n <= 0 || args.n % T::kWeights != 0 || args.top_k < 1 || args.top_k > kMaxPicks)
    return static_cast<int>(cudaErrorInvalidValue);
  if (args.tokens == 0 || args.rows == 0) return 0;
  DownLaunch launch{args, MakeRowWalk<T>(args.n)};
  return Launch(DownKernel<T>, dim3(CeilDiv(args.rows, kDownRows), args.tokens), kFfnThreads, 0,
                stream, launch);
}

template <class T, bool kBf16>
int LaunchDecode(const void* w, size_t count, const int32_t* row_ids, int n, void* values,
                 Stream stream) {
  if (count % T::kWeights != 0 || (row_ids != nullptr && (n <= 0 || n % T::kWeights != 0))) {
    return static_cast<int>(cudaErrorInvalidValue);
  }
  if (count == 0) return 0;
  size_t pieces = count / 32;
  int blocks = static_cast<int>(std::min<size_t>((pieces + 127) / 128, size_t(SmCount()) * 16));
  DecodeKernel<T, kBf16><<<blocks, 128, 0, stream>>>(
      static_cast<const uint8_t*>(w), pieces, row_ids, row_ids != nullptr ? n / 32 : 1, values);
  return LastLaunch();
}

template <class T>
constexpr WeightKernels MakeWeightKernels() {
  return {
      T::kType,
      false,
      &MatVec<T>,
      &GateUp<T>,
      &Down<T>,
      &MatMul<T>,
      [](const void* w, size_t count, const int32_t* row_ids, int n, float* values, Stream stream) {
        return LaunchDecode<T, false>(w, count, row_ids, n, values, stream);
      },
      [](const void* w, size_t count, uint16_t* values, Stream stream) {
        return LaunchDecode<T, true>(w, count, nullptr, 0, values, stream);
      }};
}

}  // namespace packtrain::cuda

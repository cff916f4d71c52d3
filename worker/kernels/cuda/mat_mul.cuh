#pragma once

// MatMul: products of quantised weights with many tokens on the tensor cores, weights unpacked on
// their way from memory to registers.
//
// A warp owns 32 rows of weights, which are the rows of two of the tensor cores' products; tokens
// are their columns, up to 64 at a time. Along the row it takes 128 weights a step: of each of its
// rows lane 4 r + c unpacks piece c of four. The product may take them in any order as long as both
// operands agree on it: step s of eight multiplies weights 4 s .. + 3 of each of the four pieces,
// so what a lane unpacks is what it multiplies, and only tokens pass through shared memory. Reading
// them is what takes longest, hence the two products of each read.
//
// Launch: 128 threads, as many blocks as the device holds, which walk the tiles of all groups.

#include "worker/kernels/cuda/piece.cuh"

namespace packtrain::cuda {

inline constexpr int kMatMulWarps = 4, kMatMulRows = 32 * kMatMulWarps, kMatMulTokens = 64;
inline constexpr int kMatMulStep = 128;                    // weights
inline constexpr int kMatMulPitch = kMatMulStep * 2 + 64;  // bytes; see MultiplyStep
inline constexpr int kMatMulMaxGroups = 512;

// Weights 4 * word .. + 3 of a piece as two pairs of bf16.
template <class T>
__device__ inline void PieceToBf16(const Piece& p, int word, uint32_t* low, uint32_t* high) {
  // Each byte plus 128 becomes the last bits of 2^23 + its value.
  uint32_t w = static_cast<uint32_t>(p.q[word]) ^ 0x80808080;
  float v[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    v[i] = __uint_as_float(__byte_perm(w, 0x4B000000, 0x7440 + i)) - 8388736.0f;
    int half = T::kHalves ? word / 4 : 0;
    v[i] = T::kMin ? fmaf(v[i], p.scale[half], p.min[half]) : v[i] * p.scale[half];
  }
  __nv_bfloat162 a = __floats2bfloat162_rn(v[0], v[1]), b = __floats2bfloat162_rn(v[2], v[3]);
  *low = *reinterpret_cast<uint32_t*>(&a), *high = *reinterpret_cast<uint32_t*>(&b);
}

// acc[h][j] += weights of the lane's rows 2 h and 2 h + 1 times tokens 8 j .. 8 j + 7, for the
// `tiles` first j.
template <class T>
__device__ inline void MultiplyStep(const Piece* pieces, const uint8_t* tokens, int tiles,
                                    float (*acc)[kMatMulTokens / 8][4]) {
  int lane = threadIdx.x % 32;
  // Eight lanes read 64 bytes of two neighbouring tokens each; the pitch puts them in all banks.
  const uint8_t* from = tokens + lane / 4 * kMatMulPitch + lane % 4 * 16;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    uint32_t a[2][2][4];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
#pragma unroll
      for (int k = 0; k < 2; ++k) {
        PieceToBf16<T>(pieces[2 * h], 2 * i + k, &a[h][k][0], &a[h][k][2]);
        PieceToBf16<T>(pieces[2 * h + 1], 2 * i + k, &a[h][k][1], &a[h][k][3]);
      }
    }
#pragma unroll
    for (int j = 0; j < kMatMulTokens / 8; ++j) {
      if (j < tiles) {
        uint4 b = *reinterpret_cast<const uint4*>(from + j * 8 * kMatMulPitch + i * 64);
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          MmaBf16(acc[h][j], a[h][0], b.x, b.y);
          MmaBf16(acc[h][j], a[h][1], b.z, b.w);
        }
      }
    }
  }
}

template <class T>
__global__ void __launch_bounds__(kMatMulWarps * 32, 3)
    MatMulKernel(const __grid_constant__ MatMulArgs args) {
  constexpr int kSubs = T::kWeights / 32, kThreads = kMatMulWarps * 32;
  constexpr int kCopies = kMatMulTokens * kMatMulStep / 8 / kThreads;
  extern __shared__ __align__(16) uint8_t tokens[];  // two steps of them
  __shared__ uint32_t table[T::kTableWords + 1];
  __shared__ int first_tile[kMatMulMaxGroups + 1];  // of token tiles
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32;

  for (int i = threadIdx.x; i < T::kTableWords; i += kThreads) table[i] = T::Table()[i];
  if (warp == 0) {
    int carry = 0;
    for (int base = 0; base < args.groups; base += 32) {
      int g = base + lane, v = 0;
      if (g < args.groups) {
        v = args.offsets != nullptr ? args.offsets[g + 1] - args.offsets[g] : args.tokens;
        v = CeilDiv(v, kMatMulTokens);
      }
      for (int o = 1; o < 32; o *= 2) {
        int up = __shfl_up_sync(~0u, v, o);
        if (lane >= o) v += up;
      }
      if (g < args.groups) first_tile[g + 1] = carry + v;
      carry += __shfl_sync(~0u, v, 31);
    }
    if (lane == 0) first_tile[0] = 0;
  }
  __syncthreads();
  int row_tiles = 0;
  for (int p = 0; p < args.num_parts; ++p) row_tiles += CeilDiv(args.parts[p].rows, kMatMulRows);
  int tiles = first_tile[args.groups] * row_tiles;
  int pieces = args.n / 32, steps = CeilDiv(args.n, kMatMulStep);

  int group = 0;
  for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    while (tile >= first_tile[group + 1] * row_tiles) ++group;
    int local = tile - first_tile[group] * row_tiles;
    int token_tiles = first_tile[group + 1] - first_tile[group];
    // Neighbouring blocks work on the same weights.
    int token0 = local % token_tiles * kMatMulTokens, row_tile = local / token_tiles, part = 0;
    while (row_tile >= CeilDiv(args.parts[part].rows, kMatMulRows))
      row_tile -= CeilDiv(args.parts[part++].rows, kMatMulRows);
    const MatVecPart& out = args.parts[part];
    int first = args.offsets != nullptr ? args.offsets[group] : 0;
    int count = (args.offsets != nullptr ? args.offsets[group + 1] - first : args.tokens) - token0;
    first += token0;
    count = min(count, kMatMulTokens);
    int row = row_tile * kMatMulRows + warp * 32 + lane / 4;

    // Past the last row its weights are read once more and the result dropped.
    const uint8_t* w[4];
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      w[r] =
          static_cast<const uint8_t*>(out.w) + group * out.expert_stride +
          static_cast<size_t>(min(row + 8 * r, out.rows - 1)) * (args.n / T::kWeights) * T::kBytes;
    }
    // A thread copies the same sixteenth of a step of the same tokens: eight activations. Those of
    // piece c that step pair i multiplies go to place 4 i + c.
    int chunk = threadIdx.x % 16, place = chunk % 4 * 4 + chunk / 4;
    int x[kCopies];
#pragma unroll
    for (int i = 0; i < kCopies; ++i) {
      int t = threadIdx.x / 16 + i * (kThreads / 16);
      x[i] = t < count ? first + t : 0;
      if (args.row_index != nullptr && t < count) x[i] = args.row_index[x[i]];
    }
    auto copy = [&](int step) {
      uint8_t* to = tokens + step % 2 * kMatMulTokens * kMatMulPitch;
#pragma unroll
      for (int i = 0; i < kCopies; ++i) {
        int t = threadIdx.x / 16 + i * (kThreads / 16);
        if (t >= (count + 7) / 8 * 8) break;
        int at = step * kMatMulStep + chunk * 8;
        bool valid = t < count && at < args.n;
        CopyAsync16(to + t * kMatMulPitch + place * 16,
                    valid ? args.x + static_cast<size_t>(x[i]) * args.n + at : args.x, valid);
      }
      CopyCommit();
    };

    float acc[2][kMatMulTokens / 8][4] = {};
    __syncthreads();
    copy(0);
    for (int step = 0; step < steps; ++step) {
      // Past the end of a row its last piece is read once more, as zeros.
      int piece = step * 4 + lane % 4, from = min(piece, pieces - 1);
      Piece p[4];
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        T::Unpack(w[r] + static_cast<size_t>(from / kSubs) * T::kBytes, from % kSubs, table, &p[r]);
        if (piece >= pieces) p[r].scale[0] = p[r].scale[1] = p[r].min[0] = p[r].min[1] = 0;
      }
      CopyWait<0>();
      __syncthreads();
      if (step + 1 < steps) copy(step + 1);
      MultiplyStep<T>(p, tokens + step % 2 * kMatMulTokens * kMatMulPitch, CeilDiv(count, 8), acc);
    }

    int y_stride = out.y_stride != 0 ? out.y_stride : out.rows;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
#pragma unroll
      for (int j = 0; j < kMatMulTokens / 8; ++j) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          int t = 8 * j + lane % 4 * 2 + e % 2, r = row + 16 * h + e / 2 * 8;
          if (t < count && r < out.rows)
            out.y[static_cast<size_t>(first + t) * y_stride + r] = acc[h][j][e];
        }
      }
    }
  }
}

template <class T>
int MatMul(const MatMulArgs& args, Stream stream) {
  if (args.n <= 0 || args.n % T::kWeights != 0 || args.num_parts < 1 || args.num_parts > 3 ||
      args.groups < 1 || args.groups > kMatMulMaxGroups ||
      (args.offsets == nullptr && args.groups > 1)) {
    return static_cast<int>(cudaErrorInvalidValue);
  }
  if (args.tokens == 0) return 0;
  constexpr int kShared = 2 * kMatMulTokens * kMatMulPitch;
  // Blocks that the device holds at once; negative: an error code.
  static const int kResident = [] {
    int blocks = 0;
    cudaError_t code =
        cudaFuncSetAttribute(MatMulKernel<T>, cudaFuncAttributeMaxDynamicSharedMemorySize, kShared);
    if (code == cudaSuccess) {
      code = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, MatMulKernel<T>,
                                                           kMatMulWarps * 32, kShared);
    }
    return code == cudaSuccess ? blocks * SmCount() : -static_cast<int>(code);
  }();
  if (kResident <= 0) return kResident < 0 ? -kResident : static_cast<int>(cudaErrorInvalidValue);
  int row_tiles = 0;
  for (int p = 0; p < args.num_parts; ++p) row_tiles += CeilDiv(args.parts[p].rows, kMatMulRows);
  int token_tiles = args.offsets != nullptr ? args.tokens / kMatMulTokens + args.groups
                                            : CeilDiv(args.tokens, kMatMulTokens) * args.groups;
  MatMulKernel<T>
      <<<std::min(token_tiles * row_tiles, kResident), kMatMulWarps * 32, kShared, stream>>>(args);
  return LastLaunch();
}

}  // namespace packtrain::cuda

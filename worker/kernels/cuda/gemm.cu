// C = A B^T in bf16 on the tensor cores, one matrix or a group of them (experts, heads).
//
// A block computes tiles of 128 x 128 with 256 threads, each warp 64 x 32, over slices of 32 of k
// that are copied three ahead. Blocks walk the tiles of all groups; how many rows a group has may
// be known on the device only.

#include "worker/kernels/cuda/device.cuh"

namespace packtrain::cuda {
namespace {

constexpr int kTile = 128, kSlice = 32, kStages = 4, kThreads = 256;
constexpr int kPitch = kSlice + 8;  // keeps eight rows of ldmatrix in different banks
constexpr int kStageElements = 2 * kTile * kPitch;
constexpr int kMaxGroups = 512;
constexpr int kSharedBytes = kStages * kStageElements * 2;

__global__ void __launch_bounds__(kThreads) GemmKernel(GemmArgs args) {
  extern __shared__ __align__(16) uint16_t shared[];
  __shared__ int first_tile[kMaxGroups + 1];  // of m tiles
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32;

  if (warp == 0) {
    int carry = 0;
    for (int base = 0; base < args.groups; base += 32) {
      int g = base + lane, v = 0;
      if (g < args.groups) {
        v = CeilDiv(args.offsets != nullptr ? args.offsets[g + 1] - args.offsets[g] : args.m,
                    kTile);
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
  int n_tiles = CeilDiv(args.n, kTile);
  int tiles = first_tile[args.groups] * n_tiles;
  int slices = args.k / kSlice;

  int group = 0;
  for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    while (tile >= first_tile[group + 1] * n_tiles) ++group;
    int local = tile - first_tile[group] * n_tiles;
    int m_tiles = first_tile[group + 1] - first_tile[group];
    // Bands of 16 tiles of m share their B in the L2 cache.
    int band = local / (16 * n_tiles), in_band = local % (16 * n_tiles);
    int band_rows = min(16, m_tiles - band * 16);
    int m0 = (band * 16 + in_band % band_rows) * kTile, n0 = in_band / band_rows * kTile;
    int row0 = args.offsets != nullptr ? args.offsets[group] : 0;
    int rows = args.offsets != nullptr ? args.offsets[group + 1] - row0 : args.m;

    // A thread copies the same quarter rows of A and B in every slice.
    const uint16_t* a_from[2];
    const uint16_t* b_from[2];
    bool a_valid[2], b_valid[2];
    int to[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      int c = threadIdx.x + i * kThreads, r = c / 4, k = c % 4 * 8;
      to[i] = r * kPitch + k;
      a_valid[i] = m0 + r < rows;
      int a_row = a_valid[i] ? row0 + m0 + r : 0;
      if (args.row_index != nullptr && a_valid[i]) a_row = args.row_index[a_row];
      a_from[i] = args.a + group * args.a_group_stride + static_cast<size_t>(a_row) * args.lda + k;
      b_valid[i] = n0 + r < args.n;
      b_from[i] = args.b + group * args.b_group_stride +
                  static_cast<size_t>(b_valid[i] ? n0 + r : 0) * args.k + k;
    }
    auto load = [&](int slice) {
      if (slice < slices) {
        uint16_t* stage = shared + slice % kStages * kStageElements;
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          CopyAsync16(stage + to[i], a_from[i] + slice * kSlice, a_valid[i]);
          CopyAsync16(stage + kTile * kPitch + to[i], b_from[i] + slice * kSlice, b_valid[i]);
        }
      }
      CopyCommit();
    };

    float acc[4][4][4] = {};
    int wm = warp % 2 * 64, wn = warp / 2 * 32;
    __syncthreads();
    for (int s = 0; s < kStages - 1; ++s) load(s);
    for (int slice = 0; slice < slices; ++slice) {
      CopyWait<kStages - 2>();
      __syncthreads();
      load(slice + kStages - 1);
      const uint16_t* a = shared + slice % kStages * kStageElements;
      const uint16_t* b = a + kTile * kPitch;
#pragma unroll
      for (int k = 0; k < kSlice; k += 16) {
        uint32_t af[4][4], bf[2][4];
#pragma unroll
        for (int i = 0; i < 4; ++i)
          LoadMatrix4(af[i], a + (wm + 16 * i + lane % 16) * kPitch + k + lane / 16 * 8);
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          LoadMatrix4(bf[j],
                      b + (wn + 16 * j + lane % 8 + lane / 16 * 8) * kPitch + k + lane / 8 % 2 * 8);
        }
#pragma unroll
        for (int i = 0; i < 4; ++i) {
#pragma unroll
          for (int j = 0; j < 4; ++j)
            MmaBf16(acc[i][j], af[i], bf[j / 2][j % 2 * 2], bf[j / 2][j % 2 * 2 + 1]);
        }
      }
    }
    CopyWait<0>();

    size_t c = group * args.c_group_stride;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          int m = m0 + wm + 16 * i + lane / 4 + e / 2 * 8,
              n = n0 + wn + 8 * j + lane % 4 * 2 + e % 2;
          if (m >= rows || n >= args.n) continue;
          size_t at = c + static_cast<size_t>(row0 + m) * args.ldc + n;
          if (args.c_bf16 != nullptr) {
            args.c_bf16[at] = __bfloat16_as_ushort(__float2bfloat16_rn(acc[i][j][e]));
          } else {
            args.c[at] = acc[i][j][e];
          }
        }
      }
    }
  }
}

// f32 operands and sums, for weights stored unquantised. A block per 32 x 32 tile: 4 groups of 64
// threads, each 4 x 4; of every 64 along k a group takes 16. Groups add up in order.
constexpr int kF32Tile = 32, kF32Slice = 64, kF32Pitch = kF32Slice + 4;

__global__ void __launch_bounds__(256)
    GemmF32Kernel(const float* a, const float* b, float* c, int m, int n, int k, int ldc) {
  __shared__ __align__(16) float tiles[2][2 * kF32Tile][kF32Pitch];  // rows of a, then of b
  int m0 = blockIdx.y * kF32Tile, n0 = blockIdx.x * kF32Tile;
  int group = threadIdx.x / 64, ty = threadIdx.x % 64 / 8, tx = threadIdx.x % 8;
  auto copy = [&](int buffer, int k0) {
    for (int i = threadIdx.x; i < 2 * kF32Tile * kF32Slice / 4; i += 256) {
      int r = i / (kF32Slice / 4), at = i % (kF32Slice / 4) * 4;
      bool of_a = r < kF32Tile;
      int row = of_a ? m0 + r : n0 + r - kF32Tile;
      bool valid = row < (of_a ? m : n);
      const float* from = (of_a ? a : b) + (valid ? static_cast<size_t>(row) * k + k0 + at : 0);
      float* to = &tiles[buffer][r][at];
      if (k % 4 == 0) {
        valid = valid && k0 + at < k;
        CopyAsync16(to, valid ? from : a, valid);
      } else {
        for (int e = 0; e < 4; ++e) to[e] = valid && k0 + at + e < k ? from[e] : 0;
      }
    }
    CopyCommit();
  };
  float acc[4][4] = {};
  copy(0, 0);
  for (int k0 = 0, buffer = 0; k0 < k; k0 += kF32Slice, buffer ^= 1) {
    CopyWait<0>();
    __syncthreads();
    if (k0 + kF32Slice < k) copy(buffer ^ 1, k0 + kF32Slice);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      int at = group * 16 + 4 * i;
      float4 av[4], bv[4];
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        av[r] = *reinterpret_cast<const float4*>(&tiles[buffer][ty + 8 * r][at]);
        bv[r] = *reinterpret_cast<const float4*>(&tiles[buffer][kF32Tile + tx + 8 * r][at]);
      }
#pragma unroll
      for (int r = 0; r < 4; ++r) {
#pragma unroll
        for (int s = 0; s < 4; ++s) {
          acc[r][s] = fmaf(av[r].x, bv[s].x, acc[r][s]);
          acc[r][s] = fmaf(av[r].y, bv[s].y, acc[r][s]);
          acc[r][s] = fmaf(av[r].z, bv[s].z, acc[r][s]);
          acc[r][s] = fmaf(av[r].w, bv[s].w, acc[r][s]);
        }
      }
    }
  }
  __syncthreads();
  float* sums = &tiles[0][0][0];  // [4][32][33]
#pragma unroll
  for (int r = 0; r < 4; ++r) {
#pragma unroll
    for (int s = 0; s < 4; ++s)
      sums[(group * kF32Tile + ty + 8 * r) * (kF32Tile + 1) + tx + 8 * s] = acc[r][s];
  }
  __syncthreads();
  for (int i = threadIdx.x; i < kF32Tile * kF32Tile; i += 256) {
    int r = i / kF32Tile, s = i % kF32Tile;
    float sum = 0;
    for (int g = 0; g < 4; ++g) sum += sums[(g * kF32Tile + r) * (kF32Tile + 1) + s];
    if (m0 + r < m && n0 + s < n) c[static_cast<size_t>(m0 + r) * ldc + n0 + s] = sum;
  }
}

}  // namespace

int Gemm(const GemmArgs& args, Stream stream) {
  if (args.k % kSlice != 0 || args.lda % 8 != 0 || args.groups < 1 || args.groups > kMaxGroups) {
    return static_cast<int>(cudaErrorInvalidValue);
  }
  if (args.m == 0 || args.n == 0) return 0;
  static const int kPrepared = static_cast<int>(
      cudaFuncSetAttribute(GemmKernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes));
  if (kPrepared != 0) return kPrepared;
  int m_tiles =
      args.offsets != nullptr ? args.m / kTile + args.groups : CeilDiv(args.m, kTile) * args.groups;
  int tiles = m_tiles * CeilDiv(args.n, kTile);
  GemmKernel<<<std::min(tiles, 2 * SmCount()), kThreads, kSharedBytes, stream>>>(args);
  return LastLaunch();
}

int GemmF32(const float* a, const float* b, float* c, int m, int n, int k, int ldc, Stream stream) {
  if (m == 0 || n == 0) return 0;
  GemmF32Kernel<<<dim3(CeilDiv(n, kF32Tile), CeilDiv(m, kF32Tile)), 256, 0, stream>>>(a, b, c, m, n,
                                                                                      k, ldc);
  return LastLaunch();
}

}  // namespace packtrain::cuda

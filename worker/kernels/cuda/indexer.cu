// Scores of the sparse-attention indexer.

#include "worker/kernels/cuda/kv_cache.cuh"

namespace packtrain::cuda {
namespace {

constexpr int kThreads = 128, kTile = 64, kDim = 128, kPitch = kDim + 8, kMaxHeads = 64;

// Any dimensions, in f32: a warp per position.
__global__ void __launch_bounds__(kThreads) ScoresKernel(IndexerArgs args) {
  LetNextBegin();
  AwaitPrevious();
  __shared__ float q[kMaxHeads * kDim];
  int row = blockIdx.y, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  int position = args.at.positions[row];
  const int32_t* table = args.at.page_tables + args.at.table_offset[row];
  size_t bytes = KvRowBytes(args.type, args.dim);
  for (int i = threadIdx.x; i < args.heads * args.dim; i += kThreads) {
    q[i] = args.q[static_cast<size_t>(row) * args.heads * args.dim + i];
  }
  __syncthreads();
  for (int t = blockIdx.x * 4 + warp; t < args.columns; t += gridDim.x * 4) {
    float score = 0;
    if (t <= position) {
      const uint8_t* key = KvRow(args.cache, table, t, bytes);
      float k[kDim / 32];
#pragma unroll
      for (int i = 0; i < kDim / 32; ++i)
        k[i] = 32 * i + lane < args.dim ? KvValue(args.type, key, 32 * i + lane) : 0;
      for (int h = 0; h < args.heads; ++h) {
        float dot = 0;
#pragma unroll
        for (int i = 0; i < kDim / 32; ++i) {
          if (32 * i + lane < args.dim) dot = fmaf(q[h * args.dim + 32 * i + lane], k[i], dot);
        }
        score = fmaf(args.w[static_cast<size_t>(row) * args.heads + h], fmaxf(WarpSum(dot), 0.0f),
                     score);
      }
    }
    if (lane == 0)
      args.scores[static_cast<size_t>(row) * args.columns + t] =
          t <= position ? score * args.scale : -INFINITY;
  }
}

// Tensor cores, dim 128: a warp per 16 positions, which are the rows of the product; heads its
// columns.
__global__ void __launch_bounds__(kThreads) ScoresMmaKernel(IndexerArgs args) {
  LetNextBegin();
  AwaitPrevious();
  __shared__ __align__(16) __half q[kMaxHeads * kPitch];
  __shared__ __align__(16) __half keys[kTile * kPitch];
  __shared__ float w[kMaxHeads];
  int row = blockIdx.y, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  int position = args.at.positions[row];
  const int32_t* table = args.at.page_tables + args.at.table_offset[row];
  size_t bytes = KvRowBytes(args.type, kDim);
  float* scores = args.scores + static_cast<size_t>(row) * args.columns;
  for (int i = threadIdx.x; i < args.heads * kDim; i += kThreads) {
    float v = args.q[static_cast<size_t>(row) * args.heads * kDim + i];
    q[i / kDim * kPitch + i % kDim] = __float2half_rn(fminf(fmaxf(v, -65504.0f), 65504.0f));
  }
  if (threadIdx.x < args.heads)
    w[threadIdx.x] = args.w[static_cast<size_t>(row) * args.heads + threadIdx.x];
  for (int t0 = blockIdx.x * kTile; t0 < args.columns; t0 += gridDim.x * kTile) {
    if (t0 > position) {
      for (int t = t0 + threadIdx.x; t < min(t0 + kTile, args.columns); t += kThreads)
        scores[t] = -INFINITY;
      continue;
    }
    __syncthreads();
    const uint8_t* first = KvRow(args.cache, table, t0, bytes);  // a tile is one page
    int rows = min(kTile, position + 1 - t0);
    if (args.type == KvType::kF16) {
      for (int c = threadIdx.x; c < kTile * kDim / 8; c += kThreads) {
        int r = c / (kDim / 8), i = c % (kDim / 8) * 8;
        CopyAsync16(keys + r * kPitch + i, r < rows ? first + r * bytes + i * 2 : first, r < rows);
      }
    } else {
      for (int c = threadIdx.x; c < kTile * kDim / 32; c += kThreads) {
        int r = c / (kDim / 32), block = c % (kDim / 32);
        if (r < rows)
          KvBlockToHalves(args.type, first + r * bytes, block, keys + r * kPitch + block * 32);
      }
    }
    CopyCommit();
    CopyWait<0>();
    __syncthreads();
    uint32_t a[kDim / 16][4];
#pragma unroll
    for (int k = 0; k < kDim / 16; ++k)
      LoadMatrix4(a[k], keys + (16 * warp + lane % 16) * kPitch + 16 * k + lane / 16 * 8);
    float low = 0, high = 0;  // of positions lane / 4 and lane / 4 + 8
    for (int n = 0; n < args.heads; n += 8) {
      float c[4] = {};
#pragma unroll
      for (int k = 0; k < kDim; k += 32) {
        uint32_t b[4];
        LoadMatrix4(b, q + (n + lane % 8) * kPitch + k + lane / 8 * 8);
        MmaF16(c, a[k / 16], b[0], b[1]);
        MmaF16(c, a[k / 16 + 1], b[2], b[3]);
      }
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        float weight = w[n + lane % 4 * 2 + e];
        low = fmaf(weight, fmaxf(c[e], 0.0f), low);
        high = fmaf(weight, fmaxf(c[2 + e], 0.0f), high);
      }
    }
    for (int o = 1; o < 4; o *= 2) {
      low += __shfl_xor_sync(~0u, low, o);
      high += __shfl_xor_sync(~0u, high, o);
    }
    if (lane % 4 == 0) {
      int t = t0 + 16 * warp + lane / 4;
      if (t < args.columns) scores[t] = t <= position ? low * args.scale : -INFINITY;
      if (t + 8 < args.columns) scores[t + 8] = t + 8 <= position ? high * args.scale : -INFINITY;
    }
  }
}

}  // namespace

int IndexerScores(const IndexerArgs& args, Stream stream) {
  if (args.heads < 1 || args.heads > kMaxHeads || args.dim > kDim ||
      (args.dim % 32 != 0 && (args.type == KvType::kQ8_0 || args.type == KvType::kQ4_1))) {
    return static_cast<int>(cudaErrorInvalidValue);
  }
  if (args.at.rows == 0 || args.columns == 0) return 0;
  if (args.dim == kDim && args.heads % 8 == 0 && args.type != KvType::kF32) {
    int blocks = std::min(CeilDiv(args.columns, kTile), std::max(1, 8 * SmCount() / args.at.rows));
    return Launch(ScoresMmaKernel, dim3(blocks, args.at.rows), kThreads, 0, stream, args);
  }
  int blocks = std::min(CeilDiv(args.columns, 4), std::max(1, 16 * SmCount() / args.at.rows));
  return Launch(ScoresKernel, dim3(blocks, args.at.rows), kThreads, 0, stream, args);
}

}  // namespace packtrain::cuda

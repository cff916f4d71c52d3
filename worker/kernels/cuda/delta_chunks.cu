// Gated DeltaNet by chunks of 64 tokens, cut at absolute multiples of 64. Within a chunk, with
// S the state in front of it, g_t the product of the decays up to token t, and d_t what token t
// adds to the state along k_t:
//   d_t = beta_t (v_t - g_t S^T k_t - sum_{i<t} g_t/g_i (k_t k_i) d_i)
//   o_t = g_t S^T q_t + sum_{i<=t} g_t/g_i (q_t k_i) d_i
//   S'  = g_64 S + sum_i g_64/g_i k_i d_i^T
// The first is a triangular system (I + A) D = B - C S with a known B [tokens, v_dim] and
// C [tokens, k_dim]. Solving it for all columns of B and C is done for all chunks at once; what is
// left to do chunk by chunk are products with S. All in f32: quotients of decays are the
// exponentials of differences of their logarithms, which are never positive.

#include "worker/kernels/cuda/delta_net.cuh"

namespace packtrain::cuda {
namespace {

constexpr int kMaxDim = 128, kThreads = 256;
constexpr int kPitch = kMaxDim + 4;  // of a token's row: neighbouring rows in different banks
constexpr int kSystemPitch = kDeltaChunk + 4;
constexpr int kColumns = 32;  // of a head's state, by a block
constexpr int kBlock = 16;    // rows of the triangular system solved at a time
using Rows = float[kDeltaChunk][kPitch];

struct Span {
  int first, rows;
};

// Chunk `index` of sequence s; no rows behind its end or if the sequence is short.
__device__ Span ChunkOf(const DeltaNetArgs& args, int s, int index) {
  int begin = args.row_offset[s], end = args.row_offset[s + 1];
  if (end - begin <= kDeltaChunk) return {begin, 0};
  int grid = begin - args.position[begin] % kDeltaChunk;
  int first = max(begin, grid + index * kDeltaChunk);
  return {first, max(0, min(end, grid + (index + 1) * kDeltaChunk) - first)};
}

// to[t][i] := from[t * stride + i], zeros outside of rows x dim. Asynchronous.
__device__ void FetchRows(Rows to, const float* from, size_t stride, Span span, int dim) {
  for (int i = threadIdx.x; i < kDeltaChunk * kMaxDim / 4; i += kThreads) {
    int t = i / (kMaxDim / 4), at = i % (kMaxDim / 4) * 4;
    bool valid = t < span.rows && at < dim;
    CopyAsync16(&to[t][at], valid ? from + static_cast<size_t>(t) * stride + at : from, valid);
  }
  CopyCommit();
}

__device__ float4 Load4(const float* p) { return *reinterpret_cast<const float4*>(p); }
__device__ float Dot4(float4 a, float4 b, float sum) {
  return fmaf(a.w, b.w, fmaf(a.z, b.z, fmaf(a.y, b.y, fmaf(a.x, b.x, sum))));
}

// Solves the systems. A block per (chunk, head, sequence). Its results: D of S = 0 in `out`, C in
// `u`, g_t/g_i (q_t k_i) behind it, and the logarithms of g in `beta_logit`.
struct SolveShared {
  Rows k, q;                                // then the columns of C and of B
  float system[kDeltaChunk][kSystemPitch];  // A transposed
  float log_decay[kDeltaChunk], beta[kDeltaChunk];
};

__device__ void SolveColumn(const SolveShared& shared, const float* scale, float* column) {
  for (int first = 0; first < kDeltaChunk; first += kBlock) {
    float x[kBlock];
#pragma unroll
    for (int j = 0; j < kBlock; ++j) x[j] = scale[first + j] * column[(first + j) * kPitch];
    for (int i = 0; i < first; ++i) {
      float known = column[i * kPitch];
#pragma unroll
      for (int j = 0; j < kBlock; j += 4) {
        float4 a = Load4(&shared.system[i][first + j]);
        x[j] = fmaf(-a.x, known, x[j]), x[j + 1] = fmaf(-a.y, known, x[j + 1]);
        x[j + 2] = fmaf(-a.z, known, x[j + 2]), x[j + 3] = fmaf(-a.w, known, x[j + 3]);
      }
    }
#pragma unroll
    for (int i = 0; i < kBlock; ++i) {
      column[(first + i) * kPitch] = x[i];
#pragma unroll
      for (int j = i + 1; j < kBlock; ++j)
        x[j] = fmaf(-shared.system[first + i][first + j], x[i], x[j]);
    }
  }
}

__global__ void __launch_bounds__(kThreads) SolveKernel(DeltaNetArgs args, int channels) {
  extern __shared__ __align__(16) uint8_t memory[];
  SolveShared& shared = *reinterpret_cast<SolveShared*>(memory);
  int head = blockIdx.y, k_head = head % args.k_heads, tid = threadIdx.x;
  Span span = ChunkOf(args, blockIdx.z, blockIdx.x);
  if (span.rows == 0) return;
  const float* qkv = args.qkv + static_cast<size_t>(span.first) * channels;
  FetchRows(shared.k, qkv + (args.k_heads + k_head) * args.k_dim, channels, span, args.k_dim);
  FetchRows(shared.q, qkv + k_head * args.k_dim, channels, span, args.k_dim);
  float* const betas = args.beta_logit + static_cast<size_t>(span.first) * args.v_heads + head;
  if (tid < kDeltaChunk) {
    bool valid = tid < span.rows;
    size_t at = static_cast<size_t>(tid) * args.v_heads;
    float sum =
        valid ? LogDecay(args.a[head],
                         args.alpha[static_cast<size_t>(span.first) * args.v_heads + head + at],
                         args.dt_bias[head])
              : 0;
    shared.beta[tid] = valid ? Sigmoid(betas[at]) : 0;
    // Sums from the first token of each warp on.
    for (int o = 1; o < 32; o *= 2) {
      float before = __shfl_up_sync(~0u, sum, o);
      if (tid % 32 >= o) sum += before;
    }
    shared.log_decay[tid] = sum;
  }
  __syncthreads();
  if (tid >= 32 && tid < kDeltaChunk) shared.log_decay[tid] += shared.log_decay[31];
  CopyWait<0>();
  __syncthreads();
  if (tid < span.rows) betas[static_cast<size_t>(tid) * args.v_heads] = shared.log_decay[tid];

  // Products of all keys and queries with all keys: thread 16 r + c has tokens r + 16 i and c + 16
  // j.
  int r = tid / 16, c = tid % 16;
  float keys[4][4] = {}, queries[4][4] = {};
  for (int at = 0; at < kMaxDim; at += 4) {
    float4 b[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) b[j] = Load4(&shared.k[c + 16 * j][at]);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float4 k = Load4(&shared.k[r + 16 * i][at]), q = Load4(&shared.q[r + 16 * i][at]);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        keys[i][j] = Dot4(k, b[j], keys[i][j]);
        queries[i][j] = Dot4(q, b[j], queries[i][j]);
      }
    }
  }
  float* const weights = args.u + static_cast<size_t>(args.rows) * args.v_heads * args.k_dim;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      int t = r + 16 * i, before = c + 16 * j;
      float quotient = before <= t ? expf(shared.log_decay[t] - shared.log_decay[before]) : 0;
      shared.system[before][t] = before < t ? shared.beta[t] * quotient * keys[i][j] : 0;
      if (t < span.rows) {
        weights[(static_cast<size_t>(span.first + t) * args.v_heads + head) * kDeltaChunk +
                before] = quotient * queries[i][j];
      }
    }
  }
  __syncthreads();
  FetchRows(shared.q, qkv + 2 * args.k_heads * args.k_dim + head * args.v_dim, channels, span,
            args.v_dim);
  // What the columns of B and C are of those of V and K; log_decay is not needed any more.
  __shared__ float scales[2][kDeltaChunk];
  if (tid < kDeltaChunk) {
    scales[0][tid] = shared.beta[tid] * expf(shared.log_decay[tid]);
    scales[1][tid] = shared.beta[tid];
  }
  CopyWait<0>();
  __syncthreads();
  SolveColumn(shared, scales[tid / kMaxDim],
              (tid < kMaxDim ? shared.k[0] : shared.q[0]) + tid % kMaxDim);
  __syncthreads();
  for (int i = tid; i < span.rows * kMaxDim; i += kThreads) {
    int t = i / kMaxDim, at = i % kMaxDim;
    size_t row = static_cast<size_t>(span.first + t) * args.v_heads + head;
    if (at < args.k_dim) args.u[row * args.k_dim + at] = shared.k[t][at];
    if (at < args.v_dim) args.out[row * args.v_dim + at] = shared.q[t][at];
  }
}

// The rest, chunk by chunk. A block per (32 columns of a head's state, head, sequence). Two buffers
// take turns: one is computed with while the other is filled.
struct ChunkShared {
  float state[kMaxDim][kColumns];
  Rows buffers[2];
  float added[kDeltaChunk][kColumns];           // D
  float decay[kDeltaChunk], rest[kDeltaChunk];  // g_t; g_64 / g_t
};

// sums[i][j] += product of row r + 16 i of `rows` and column c + j of `columns`, over `inner`.
template <int kInner>
__device__ void Multiply(const Rows rows, const float (*columns)[kColumns], int r, int c,
                         float (*sums)[2]) {
#pragma unroll 4
  for (int at = 0; at < kInner; at += 4) {
    float2 b[4];
#pragma unroll
    for (int k = 0; k < 4; ++k) b[k] = *reinterpret_cast<const float2*>(&columns[at + k][c]);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float4 a = Load4(&rows[r + 16 * i][at]);
      sums[i][0] = Dot4(a, make_float4(b[0].x, b[1].x, b[2].x, b[3].x), sums[i][0]);
      sums[i][1] = Dot4(a, make_float4(b[0].y, b[1].y, b[2].y, b[3].y), sums[i][1]);
    }
  }
}

__global__ void __launch_bounds__(kThreads) ChunkKernel(DeltaNetArgs args, int channels) {
  extern __shared__ __align__(16) uint8_t memory[];
  ChunkShared& shared = *reinterpret_cast<ChunkShared*>(memory);
  int head = blockIdx.y, k_head = head % args.k_heads, tid = threadIdx.x;
  int first_column = blockIdx.x * kColumns, s = blockIdx.z;
  Span span = ChunkOf(args, s, 0);
  if (span.rows == 0) return;
  float* const state =
      args.state +
      (static_cast<size_t>(args.slot[s]) * args.v_heads + head) * args.k_dim * args.v_dim +
      first_column;
  const auto each_of_state = [&](auto&& use) {
    for (int i = tid; i < kMaxDim * kColumns; i += kThreads) {
      int k = i / kColumns, column = i % kColumns;
      use(&shared.state[k][column], state + static_cast<size_t>(k) * args.v_dim + column,
          k < args.k_dim && first_column + column < args.v_dim);
    }
  };
  each_of_state([](float* to, float* from, bool valid) { *to = valid ? *from : 0; });

  const auto weights = args.u + static_cast<size_t>(args.rows) * args.v_heads * args.k_dim;
  const auto fetch_solved = [&](Span of) {
    size_t row = static_cast<size_t>(of.first) * args.v_heads + head;
    FetchRows(shared.buffers[0], args.u + row * args.k_dim,
              static_cast<size_t>(args.v_heads) * args.k_dim, of, args.k_dim);
  };
  int r = tid / 16, c = tid % 16 * 2;         // of products of tokens and columns
  int k = tid / 8 * 4, column = tid % 8 * 4;  // of the state
  fetch_solved(span);
  for (int index = 0; span.rows > 0;) {
    const float* qkv = args.qkv + static_cast<size_t>(span.first) * channels;
    size_t row = static_cast<size_t>(span.first) * args.v_heads + head;
    FetchRows(shared.buffers[1], qkv + k_head * args.k_dim, channels, span, args.k_dim);
    if (tid < kDeltaChunk) {
      const float* logs = args.beta_logit + row;
      float last = logs[static_cast<size_t>(span.rows - 1) * args.v_heads];
      float log = tid < span.rows ? logs[static_cast<size_t>(tid) * args.v_heads] : last;
      shared.decay[tid] = expf(log), shared.rest[tid] = expf(last - log);
    }
    CopyWait<1>();
    __syncthreads();

    // D is what was solved for S = 0, less C S.
    float* const out = args.out + row * args.v_dim + first_column + c;
    float added[4][2], sums[4][2] = {};
    Multiply<kMaxDim>(shared.buffers[0], shared.state, r, c, sums);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      int t = r + 16 * i;
      bool valid = t < span.rows && first_column + c < args.v_dim;
      float2 solved = valid ? *reinterpret_cast<const float2*>(out + static_cast<size_t>(t) *
                                                                         args.v_heads * args.v_dim)
                            : float2{};
      added[i][0] = solved.x - sums[i][0], added[i][1] = solved.y - sums[i][1];
      *reinterpret_cast<float2*>(&shared.added[t][c]) = {added[i][0], added[i][1]};
      sums[i][0] = sums[i][1] = 0;
    }
    __syncthreads();
    FetchRows(shared.buffers[0], weights + row * kDeltaChunk,
              static_cast<size_t>(args.v_heads) * kDeltaChunk, span, kDeltaChunk);
    CopyWait<1>();
    __syncthreads();

    Multiply<kMaxDim>(shared.buffers[1], shared.state, r, c, sums);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      sums[i][0] *= shared.decay[r + 16 * i], sums[i][1] *= shared.decay[r + 16 * i];
    }
    __syncthreads();
    FetchRows(shared.buffers[1], qkv + (args.k_heads + k_head) * args.k_dim, channels, span,
              args.k_dim);
    CopyWait<1>();
    __syncthreads();
    Multiply<kDeltaChunk>(shared.buffers[0], shared.added, r, c, sums);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      int t = r + 16 * i;
      if (t < span.rows && first_column + c < args.v_dim) {
        *reinterpret_cast<float2*>(out + static_cast<size_t>(t) * args.v_heads * args.v_dim) = {
            sums[i][0], sums[i][1]};
      }
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      int t = r + 16 * i;
      float rest = t < span.rows ? shared.rest[t] : 0;
      *reinterpret_cast<float2*>(&shared.added[t][c]) = {rest * added[i][0], rest * added[i][1]};
    }
    Span next = ChunkOf(args, s, ++index);
    fetch_solved(next);
    CopyWait<1>();
    __syncthreads();
    float whole = shared.decay[kDeltaChunk - 1], sum[4][4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float4 old = Load4(&shared.state[k + i][column]);
      sum[i][0] = whole * old.x, sum[i][1] = whole * old.y, sum[i][2] = whole * old.z,
      sum[i][3] = whole * old.w;
    }
#pragma unroll 4
    for (int t = 0; t < kDeltaChunk; ++t) {
      float4 key = Load4(&shared.buffers[1][t][k]), d = Load4(&shared.added[t][column]);
      const float keys[4] = {key.x, key.y, key.z, key.w};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        sum[i][0] = fmaf(keys[i], d.x, sum[i][0]), sum[i][1] = fmaf(keys[i], d.y, sum[i][1]);
        sum[i][2] = fmaf(keys[i], d.z, sum[i][2]), sum[i][3] = fmaf(keys[i], d.w, sum[i][3]);
      }
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      *reinterpret_cast<float4*>(&shared.state[k + i][column]) =
          make_float4(sum[i][0], sum[i][1], sum[i][2], sum[i][3]);
    }
    __syncthreads();
    span = next;
  }
  each_of_state([](float* from, float* to, bool valid) {
    if (valid) *to = *from;
  });
}

}  // namespace

int DeltaNetChunks(const DeltaNetArgs& args, int channels, Stream stream) {
  static const int kPrepared = [] {
    constexpr auto kAttribute = cudaFuncAttributeMaxDynamicSharedMemorySize;
    const cudaError_t error =
        cudaFuncSetAttribute(SolveKernel, kAttribute, static_cast<int>(sizeof(SolveShared)));
    return static_cast<int>(
        error != cudaSuccess
            ? error
            : cudaFuncSetAttribute(ChunkKernel, kAttribute, static_cast<int>(sizeof(ChunkShared))));
  }();
  if (kPrepared != 0) return kPrepared;
  const int chunks = CeilDiv(args.longest, kDeltaChunk) + 1;  // the first may be a part of one
  SolveKernel<<<dim3(chunks, args.v_heads, args.sequences), kThreads, sizeof(SolveShared),
                stream>>>(args, channels);
  ChunkKernel<<<dim3(CeilDiv(args.v_dim, kColumns), args.v_heads, args.sequences), kThreads,
                sizeof(ChunkShared), stream>>>(args, channels);
  return LastLaunch();
}

}  // namespace packtrain::cuda

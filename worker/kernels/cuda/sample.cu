// Sampling: the rules of worker/ops/sampler, in double as there.

#include <cfloat>

#include "worker/kernels/cuda/device.cuh"

namespace packtrain::cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;

// What a part of the vocabulary adds up to.
struct Partial {
  double score;         // the best
  double sum;           // of exp(logit - max)
  double relative_sum;  // of exp((logit - max) / temperature)
  float max;
  int32_t id;
};

__device__ inline float Clean(float logit) {
  return isnan(logit) ? -INFINITY : fminf(logit, FLT_MAX);
}

__device__ inline uint4 Philox(uint4 c, uint64_t key) {
  auto k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
#pragma unroll
  for (int round = 0; round < 10; ++round) {
    uint32_t high0 = __umulhi(0xD2511F53u, c.x), low0 = 0xD2511F53u * c.x;
    uint32_t high1 = __umulhi(0xCD9E8D57u, c.z), low1 = 0xCD9E8D57u * c.z;
    c = make_uint4(high1 ^ c.y ^ k0, low1, high0 ^ c.w ^ k1, low0);
    k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
  }
  return c;
}

__device__ inline double Gumbel(uint32_t word) { return -log(-log((word + 0.5) * 0x1p-32)); }

// a := a with b; ids of b may be lower or higher.
__device__ inline void Merge(const SampleRow& row, Partial* a, const Partial& b) {
  if (b.score > a->score || (b.score == a->score && b.id < a->id)) {
    a->score = b.score;
    a->id = b.id;
  }
  if (b.max == -INFINITY) return;
  if (row.wants_sums) {
    float max = fmaxf(a->max, b.max);
    double keep = a->max == -INFINITY ? 0 : a->max - static_cast<double>(max);
    double add = b.max - static_cast<double>(max);
    a->sum = a->sum * exp(keep) + b.sum * exp(add);
    double inverse = row.temperature > 0 ? 1.0 / row.temperature : 0;
    a->relative_sum = a->relative_sum * exp(keep * inverse) + b.relative_sum * exp(add * inverse);
  }
  a->max = fmaxf(a->max, b.max);
}

// In a fixed order; the result is thread 0's.
__device__ inline void MergeBlock(const SampleRow& row, Partial* mine) {
  __shared__ Partial warps[kWarps];
  auto shuffle = [](const Partial& p, int o) {
    Partial other;
    other.score = __shfl_down_sync(~0u, p.score, o);
    other.sum = __shfl_down_sync(~0u, p.sum, o);
    other.relative_sum = __shfl_down_sync(~0u, p.relative_sum, o);
    other.max = __shfl_down_sync(~0u, p.max, o);
    other.id = __shfl_down_sync(~0u, p.id, o);
    return other;
  };
  for (int o = 16; o > 0; o >>= 1) Merge(row, mine, shuffle(*mine, o));
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = *mine;
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int w = 1; w < kWarps; ++w) Merge(row, mine, warps[w]);
  }
}

__device__ inline Partial Nothing() { return {-INFINITY, 0, 0, -INFINITY, INT32_MAX}; }

__global__ void __launch_bounds__(kThreads) PartialKernel(const __grid_constant__ SampleArgs args) {
  const SampleRow& row = args.row[blockIdx.y];
  const float* logits = args.logits + static_cast<size_t>(blockIdx.y) * args.n;
  LetNextBegin();
  AwaitPrevious();
  Partial mine = Nothing();
  int step = gridDim.x * kThreads * 4, first = (blockIdx.x * kThreads + threadIdx.x) * 4;
  for (int base = first; base < args.n; base += step) {
    uint4 random = {};
    if (row.draws) {
      random = Philox(make_uint4(static_cast<uint32_t>(base) / 4, row.choice, row.position, 0),
                      row.seed);
    }
    const uint32_t words[4] = {random.x, random.y, random.z, random.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (base + i >= args.n) break;
      float logit = Clean(logits[base + i]);
      double score = logit;
      if (row.draws) score = logit / static_cast<double>(row.temperature) + Gumbel(words[i]);
      if (score > mine.score || mine.id == INT32_MAX) mine.score = score, mine.id = base + i;
      mine.max = fmaxf(mine.max, logit);
    }
  }
  if (row.wants_sums && mine.max > -INFINITY) {
    double inverse = row.temperature > 0 ? 1.0 / row.temperature : 0;
    for (int base = first; base < args.n; base += step) {
      for (int i = base; i < min(base + 4, args.n); ++i) {
        double below = Clean(logits[i]) - static_cast<double>(mine.max);
        mine.sum += exp(below);
        if (row.temperature > 0) mine.relative_sum += exp(below * inverse);
      }
    }
  }
  MergeBlock(row, &mine);
  if (threadIdx.x == 0)
    static_cast<Partial*>(args.workspace)[blockIdx.y * gridDim.x + blockIdx.x] = mine;
}

// A block per row, a thread per part.
__global__ void __launch_bounds__(kThreads)
    FinishKernel(const __grid_constant__ SampleArgs args, int parts) {
  const SampleRow& row = args.row[blockIdx.x];
  LetNextBegin();
  AwaitPrevious();
  Partial mine = Nothing();
  if (threadIdx.x < parts)
    mine = static_cast<const Partial*>(args.workspace)[blockIdx.x * parts + threadIdx.x];
  MergeBlock(row, &mine);
  if (threadIdx.x != 0) return;
  SampledRow* out = args.out + blockIdx.x;
  out->id = mine.id;
  out->logit = args.logits[static_cast<size_t>(blockIdx.x) * args.n + mine.id];
  out->log_sum = mine.max + log(mine.sum);
  out->relative_sum = mine.relative_sum;
}

constexpr int kParts = 64;

}  // namespace

size_t SampleWorkspaceBytes() { return kMaxSampleRows * kParts * sizeof(Partial); }

int Sample(const SampleArgs& args, Stream stream) {
  if (args.rows > kMaxSampleRows || args.n < 1) return static_cast<int>(cudaErrorInvalidValue);
  if (args.rows == 0) return 0;
  if (int code = Launch(PartialKernel, dim3(kParts, args.rows), kThreads, 0, stream, args);
      code != 0) {
    return code;
  }
  return Launch(FinishKernel, args.rows, kThreads, 0, stream, args, kParts);
}

}  // namespace packtrain::cuda

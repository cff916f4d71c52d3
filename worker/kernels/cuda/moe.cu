// Routing: which experts a token picks, and what becomes of their results.

#include "worker/kernels/cuda/device.cuh"

namespace packtrain::cuda {
namespace {

constexpr int kMaxPerLane = 16;  // 512 experts over 32 lanes

// The largest of the warp's candidates, ties to the lower index.
__device__ inline void WarpArgMax(float* value, int* index) {
  for (int o = 16; o > 0; o >>= 1) {
    float other = __shfl_xor_sync(~0u, *value, o);
    int other_index = __shfl_xor_sync(~0u, *index, o);
    if (other > *value || (other == *value && other_index < *index))
      *value = other, *index = other_index;
  }
}

// Larger scores have larger keys, all above 0; NaN is as low as -inf.
__device__ inline uint32_t ScoreKey(float v) {
  if (v != v) v = -INFINITY;
  uint32_t bits = __float_as_uint(v + 0.0f);
  return bits & 0x80000000 ? ~bits : bits | 0x80000000;
}

// A warp per token; lane l holds experts l, l + 32, ...: up to kPer.
template <int kPer>
__global__ void __launch_bounds__(32) RouterKernel(RouterArgs args) {
  int token = blockIdx.x, lane = threadIdx.x, experts = args.num_experts;
  const float* logits = args.logits + static_cast<size_t>(token) * experts;
  float p[kPer], score[kPer];
  LetNextBegin();
  float bias[kPer];
#pragma unroll
  for (int i = 0; i < kPer; ++i) {
    int e = lane + 32 * i;
    bias[i] = e < experts && args.bias != nullptr ? args.bias[e] : 0.0f;
  }
  AwaitPrevious();
  float highest = -INFINITY;
#pragma unroll
  for (int i = 0; i < kPer; ++i) {
    int e = lane + 32 * i;
    p[i] = e < experts ? logits[e] : -INFINITY;
    highest = fmaxf(highest, p[i]);
  }
  if (args.sigmoid) {
#pragma unroll
    for (int i = 0; i < kPer; ++i) p[i] = Sigmoid(p[i]);
  } else {
    highest = WarpMax(highest);
    float sum = 0;
#pragma unroll
    for (int i = 0; i < kPer; ++i) {
      p[i] = expf(p[i] - highest);
      sum += p[i];
    }
    sum = WarpSum(sum);
#pragma unroll
    for (int i = 0; i < kPer; ++i) p[i] /= sum;
  }
#pragma unroll
  for (int i = 0; i < kPer; ++i) score[i] = lane + 32 * i < experts ? p[i] + bias[i] : -INFINITY;
  if (args.groups > 1) {
    __shared__ float shared[512];
    __shared__ uint8_t keep[512];
#pragma unroll
    for (int i = 0; i < kPer; ++i) {
      if (lane + 32 * i < experts)
        shared[lane + 32 * i] = score[i] == score[i] ? score[i] : -INFINITY;
    }
    __syncwarp();
    int size = experts / args.groups;
    float group_score = -INFINITY;
    if (lane < args.groups) {
      float best = -INFINITY, second = -INFINITY;
      for (int i = 0; i < size; ++i) {
        float s = shared[lane * size + i];
        if (s > best) {
          second = best, best = s;
        } else if (s > second) {
          second = s;
        }
      }
      group_score = best + (size > 1 ? second : 0.0f);
      keep[lane] = 0;
    }
    __syncwarp();
    for (int g = 0; g < args.groups_used; ++g) {
      float value = group_score;
      int index = lane;
      WarpArgMax(&value, &index);
      if (lane == index) {
        group_score = -INFINITY;
        keep[lane] = 1;
      }
    }
    __syncwarp();
#pragma unroll
    for (int i = 0; i < kPer; ++i) {
      int e = lane + 32 * i;
      if (e < experts && !keep[e / size]) score[i] = -INFINITY;
    }
  }
  float weight = 0;
  int id = 0;
  uint32_t keys[kPer];  // 0: picked, or no expert
#pragma unroll
  for (int i = 0; i < kPer; ++i) keys[i] = lane + 32 * i < experts ? ScoreKey(score[i]) : 0;
  for (int k = 0; k < args.top_k; ++k) {
    uint32_t best = 0;
    int first = 0;  // of the lane's largest, the lowest
#pragma unroll
    for (int i = 0; i < kPer; ++i) {
      if (keys[i] > best) best = keys[i], first = i;
    }
    uint32_t largest = __reduce_max_sync(~0u, best);
    uint32_t index =
        __reduce_min_sync(~0u, best == largest ? static_cast<uint32_t>(lane + 32 * first) : ~0u);
    float picked = 0;
#pragma unroll
    for (int i = 0; i < kPer; ++i) {
      if (lane + 32 * i == index) picked = p[i], keys[i] = 0;
    }
    picked = __shfl_sync(~0u, picked, static_cast<int>(index % 32));
    if (lane == k) weight = picked, id = static_cast<int>(index);
  }
  if (args.normalize) {
    // In rank order, on every lane alike.
    float sum = 0;
    for (int k = 0; k < args.top_k; ++k) sum += __shfl_sync(~0u, weight, k);
    weight /= fmaxf(sum, 6.103515625e-5f);
  }
  if (lane < args.top_k) {
    args.ids[token * args.top_k + lane] = id;
    args.weights[token * args.top_k + lane] = weight * args.scale;
  }
}

__device__ inline bool Owned(const int32_t* ids, const int32_t* slot, int pair, int* expert) {
  int e = ids[pair];
  if (e >= 0 && slot != nullptr) e = slot[e];
  *expert = e;
  return e >= 0;
}

__global__ void __launch_bounds__(256)
    CombineKernel(const float* x, const int32_t* ids, const int32_t* slot,
                  const int32_t* row_of_pair, const float* weights, int top_k, int n,
                  bool accumulate, float* y) {
  LetNextBegin();
  AwaitPrevious();
  int token = blockIdx.x, i = blockIdx.y * 256 + threadIdx.x;
  if (i >= n) return;
  float sum = 0;
  constexpr int kAtOnce = 8;  // loads under way
  for (int base = 0; base < top_k; base += kAtOnce) {
    float value[kAtOnce], weight[kAtOnce];
    bool counts[kAtOnce];
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) {
      int pair = token * top_k + base + k, expert, row = -1;
      if (base + k < top_k && Owned(ids, slot, pair, &expert))
        row = row_of_pair != nullptr ? row_of_pair[pair] : pair;
      counts[k] = row >= 0;
      value[k] = counts[k] ? x[static_cast<size_t>(row) * n + i] : 0.0f;
      weight[k] = counts[k] ? weights[pair] : 0.0f;
    }
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) {
      if (counts[k]) sum = fmaf(weight[k], value[k], sum);
    }
  }
  float* to = y + static_cast<size_t>(token) * n + i;
  *to = accumulate ? *to + sum : sum;
}

// A block per expert: counts its pairs.
__global__ void __launch_bounds__(256)
    CountPairsKernel(const int32_t* ids, const int32_t* slot, int pairs, int32_t* counts) {
  __shared__ int total;
  if (threadIdx.x == 0) total = 0;
  __syncthreads();
  int count = 0, expert;
  for (int p = threadIdx.x; p < pairs; p += 256)
    count += Owned(ids, slot, p, &expert) && expert == blockIdx.x;
  atomicAdd(&total, count);
  __syncthreads();
  if (threadIdx.x == 0) counts[blockIdx.x + 1] = total;
  if (threadIdx.x == 0 && blockIdx.x == 0) counts[0] = 0;
}

__global__ void __launch_bounds__(32) ScanKernel(int32_t* offsets, int n) {
  int carry = 0;
  for (int base = 0; base < n; base += 32) {
    int i = base + threadIdx.x;
    int v = i < n ? offsets[i + 1] : 0;
    for (int o = 1; o < 32; o *= 2) {
      int up = __shfl_up_sync(~0u, v, o);
      if (threadIdx.x >= o) v += up;
    }
    if (i < n) offsets[i + 1] = carry + v;
    carry += __shfl_sync(~0u, v, 31);
  }
}

// A block per expert: places its pairs in order.
__global__ void __launch_bounds__(256)
    PlacePairsKernel(const int32_t* ids, const int32_t* slot, int pairs, int top_k,
                     const int32_t* offsets, int32_t* token_of_row, int32_t* row_of_pair) {
  __shared__ int warp_count[8];
  int next = offsets[blockIdx.x];
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  for (int base = 0; base < pairs; base += 256) {
    int pair = base + threadIdx.x, expert = -1;
    bool owned = pair < pairs && Owned(ids, slot, pair, &expert);
    if (blockIdx.x == 0 && pair < pairs && !owned) row_of_pair[pair] = -1;
    bool mine = owned && expert == blockIdx.x;
    unsigned mask = __ballot_sync(~0u, mine);
    if (lane == 0) warp_count[warp] = __popc(mask);
    __syncthreads();
    int before = 0, all = 0;
    for (int w = 0; w < 8; ++w) {
      if (w < warp) before += warp_count[w];
      all += warp_count[w];
    }
    if (mine) {
      int row = next + before + __popc(mask & ((1u << lane) - 1));
      token_of_row[row] = pair / top_k;
      row_of_pair[pair] = row;
    }
    next += all;
    __syncthreads();
  }
}

}  // namespace

int Router(const RouterArgs& args, Stream stream) {
  if (args.num_experts < 1 || args.num_experts > 32 * kMaxPerLane || args.top_k < 1 ||
      args.top_k > kMaxPicks || args.top_k > args.num_experts || args.groups > 32 ||
      (args.groups > 1 && args.num_experts % args.groups != 0)) {
    return static_cast<int>(cudaErrorInvalidValue);
  }
  if (args.tokens == 0) return 0;
  const auto kernel = args.num_experts <= 256 ? RouterKernel<8> : RouterKernel<kMaxPerLane>;
  return Launch(kernel, args.tokens, 32, 0, stream, args);
}

int CombineExperts(const float* x, const int32_t* ids, const int32_t* slot,
                   const int32_t* row_of_pair, const float* weights, int tokens, int top_k, int n,
                   bool accumulate, float* y, Stream stream) {
  if (tokens == 0) return 0;
  return Launch(CombineKernel, dim3(tokens, CeilDiv(n, 256)), 256, 0, stream, x, ids, slot,
                row_of_pair, weights, top_k, n, accumulate, y);
}

int SortPairs(const int32_t* ids, const int32_t* slot, int tokens, int top_k, int num_experts,
              int32_t* offsets, int32_t* token_of_row, int32_t* row_of_pair, Stream stream) {
  int pairs = tokens * top_k;
  CountPairsKernel<<<num_experts, 256, 0, stream>>>(ids, slot, pairs, offsets);
  ScanKernel<<<1, 32, 0, stream>>>(offsets, num_experts);
  PlacePairsKernel<<<num_experts, 256, 0, stream>>>(ids, slot, pairs, top_k, offsets, token_of_row,
                                                    row_of_pair);
  return LastLaunch();
}

}  // namespace packtrain::cuda

// Attention on the tensor cores: f16 operands, f32 sums.
//
// A block of 8 warps works on up to 16 * kMTiles query rows (heads of one or several tokens that
// read the same kv head) and walks the context in tiles of 32 entries, copied to shared memory as
// f16 while the tile before is computed. Warps that share 16 * kRowTiles query rows split the
// dimensions: of the keys, each has its queries in registers and their partial scores are added up
// in order; of the values, each keeps its sums in registers. Two row tiles in a warp halve what it
// reads of keys and values, and want all its registers.

#include "worker/kernels/cuda/attention.cuh"

namespace packtrain::cuda {
namespace {

constexpr int kThreads = 256, kEntries = 32;

template <int kK, int kV, bool kShared, int kMTiles, int kRowTiles>
struct Shape {
  static constexpr int kRows = 16 * kMTiles;
  static constexpr int kKPitch = kK + 8, kVPitch = kShared ? kKPitch : kV + 8;
  static constexpr int kScorePitch = kEntries + 8, kProbPitch = kEntries + 8;
  static constexpr int kGroups = kMTiles / kRowTiles;  // of warps with the same rows
  static constexpr int kParts = 8 / kGroups;           // warps of a group
  static constexpr int kKSlice = kK / kParts;          // key dims of a warp
  static constexpr int kSlice = kV / kParts;           // value dims of a warp
  static constexpr int kKeyHalves = kEntries * kKPitch;
  static constexpr int kValueHalves = kShared ? 0 : kEntries * kVPitch;
  static constexpr int kTileHalves = kKeyHalves + kValueHalves;  // two of them
  static constexpr int kScores = 2 * kTileHalves * 2;            // [kParts][kRows][kScorePitch]
  static constexpr int kProbs = kScores + kParts * kRows * kScorePitch * 4;
  static constexpr int kStats = kProbs + kRows * kProbPitch * 2;
  static constexpr int kSharedBytes = kStats + 3 * kRows * 4;
  static_assert(kKSlice % 16 == 0 && kSlice % 16 == 0);
};

// One cache tile to shared memory. `rows` [kEntries]: cache rows, null past the end; the first is
// there.
template <int kDim>
__device__ inline void LoadTile(KvType type, const uint8_t* const* rows, int head, int pitch,
                                __half* tile) {
  if (type == KvType::kF16) {
    constexpr int kChunks = kDim / 8;
    for (int c = threadIdx.x; c < kEntries * kChunks; c += kThreads) {
      const uint8_t* row = rows[c / kChunks];
      int i = c % kChunks * 8;
      CopyAsync16(tile + c / kChunks * pitch + i,
                  row != nullptr ? row + (head * kDim + i) * 2 : rows[0], row != nullptr);
    }
  } else {
    constexpr int kBlocks = kDim / 32;
    for (int c = threadIdx.x; c < kEntries * kBlocks; c += kThreads) {
      const uint8_t* row = rows[c / kBlocks];
      __half* to = tile + c / kBlocks * pitch + c % kBlocks * 32;
      if (row != nullptr) {
        KvBlockToHalves(type, row, head * kBlocks + c % kBlocks, to);
      } else {
        for (int i = 0; i < 4; ++i) reinterpret_cast<uint4*>(to)[i] = make_uint4(0, 0, 0, 0);
      }
    }
  }
}

struct Tiling {
  int heads_per_block;  // query heads of one kv head in a block
  int head_groups;      // blocks per kv head
  int tokens_per_block;
};

template <int kK, int kV, bool kShared, int kMTiles, int kRowTiles>
__global__ void __launch_bounds__(kThreads, 3 - kRowTiles)
    AttentionMmaKernel(const __grid_constant__ AttentionArgs args,
                       const __grid_constant__ Tiling tiling) {
  using S = Shape<kK, kV, kShared, kMTiles, kRowTiles>;
  extern __shared__ __align__(16) uint8_t shared[];
  LetNextBegin();
  AwaitPrevious();
  auto tiles = reinterpret_cast<__half*>(shared);
  auto scores = reinterpret_cast<float*>(shared + S::kScores);
  auto probs = reinterpret_cast<__half*>(shared + S::kProbs);
  auto highest = reinterpret_cast<float*>(shared + S::kStats);
  float* sums = highest + S::kRows;
  float* keeps = sums + S::kRows;
  __shared__ const uint8_t* k_rows[2][kEntries];
  __shared__ const uint8_t* v_rows[2][kEntries];
  __shared__ int limits[S::kRows];

  int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  int split = blockIdx.x;
  int kv_head = blockIdx.y / tiling.head_groups;
  int group = args.heads / args.kv_heads;
  int first_in_group = blockIdx.y % tiling.head_groups * tiling.heads_per_block;
  int first_row = blockIdx.z * tiling.tokens_per_block;
  int last_row = min(first_row + tiling.tokens_per_block, args.at.rows) - 1;

  // Query row r is head `first + r % heads_per_block` of token r / heads_per_block; -1: none.
  auto token_of = [&](int r) {
    int token = first_row + r / tiling.heads_per_block;
    bool valid = r < tiling.tokens_per_block * tiling.heads_per_block && token <= last_row &&
                 first_in_group + r % tiling.heads_per_block < group;
    return valid ? token : -1;
  };
  auto head_of = [&](int r) {
    return kv_head * group + first_in_group + r % tiling.heads_per_block;
  };

  int count = EntryCount(args, last_row);  // the longest of the block's rows
  Split range = SplitOf(count, args.max_splits, split);
  if (range.begin >= range.end) return;
  const int32_t* table = args.at.page_tables + args.at.table_offset[first_row];
  size_t k_bytes = KvRowBytes(args.type, static_cast<size_t>(args.kv_heads) * kK);
  size_t v_bytes = KvRowBytes(args.type, static_cast<size_t>(args.kv_heads) * kV);

  // Where the rows of a tile lie, for the copy one tile later.
  auto find_rows = [&](int base) {
    if (threadIdx.x >= kEntries) return;
    int entry = base + threadIdx.x, buffer = base / kEntries % 2;
    int position = entry < range.end ? EntryPosition(args, last_row, entry) : -1;
    k_rows[buffer][threadIdx.x] =
        position >= 0 ? KvRow(args.k_cache, table, position, k_bytes) : nullptr;
    v_rows[buffer][threadIdx.x] =
        position >= 0 && !kShared ? KvRow(args.v_cache, table, position, v_bytes) : nullptr;
  };
  auto copy_tile = [&](int base) {
    int buffer = base / kEntries % 2;
    __half* keys = tiles + buffer * S::kTileHalves;
    LoadTile<kK>(args.type, k_rows[buffer], kv_head, S::kKPitch, keys);
    if constexpr (!kShared)
      LoadTile<kV>(args.type, v_rows[buffer], kv_head, S::kVPitch, keys + S::kKeyHalves);
    CopyCommit();
  };
  find_rows(range.begin);
  for (int r = threadIdx.x; r < S::kRows; r += kThreads) {
    int token = token_of(r);
    limits[r] = token >= 0 ? EntryCount(args, token) : 0;
    highest[r] = -INFINITY, sums[r] = 0;
  }
  __syncthreads();
  copy_tile(range.begin);
  find_rows(range.begin + kEntries);

  // Meanwhile the warp's queries.
  int m = warp % S::kGroups * 16 * kRowTiles, part = warp / S::kGroups;  // m: the first row
  uint32_t q[kRowTiles][S::kKSlice / 16][4];
#pragma unroll
  for (int i = 0; i < 2 * kRowTiles; ++i) {
    int half = i % 2, r = m + i / 2 * 16 + lane / 4 + 8 * half, token = token_of(r);
    const float* from = args.q + static_cast<size_t>(max(token, 0)) * args.q_stride +
                        static_cast<size_t>(token >= 0 ? head_of(r) : 0) * args.q_head_stride +
                        part * S::kKSlice + lane % 4 * 2;
    auto pair = [&](int at) {
      float2 v = token >= 0 ? *reinterpret_cast<const float2*>(from + at) : make_float2(0, 0);
      auto finite = [](float f) { return fminf(fmaxf(f, -65504.0f), 65504.0f); };
      return PackHalves(finite(v.x), finite(v.y));
    };
#pragma unroll
    for (int k = 0; k < S::kKSlice / 16; ++k)
      q[i / 2][k][half] = pair(16 * k), q[i / 2][k][2 + half] = pair(16 * k + 8);
  }

  float acc[kRowTiles][S::kSlice / 8][4] = {};
  for (int base = range.begin; base < range.end; base += kEntries) {
    const __half* k_tile = tiles + base / kEntries % 2 * S::kTileHalves;
    const __half* v_tile = k_tile + S::kKeyHalves * (kShared ? 0 : 1);
    CopyWait<0>();
    __syncthreads();
    if (base + kEntries < range.end) copy_tile(base + kEntries);
    find_rows(base + 2 * kEntries);

    constexpr int kAtOnce = kEntries / 16 / kRowTiles;  // pairs of entry tiles
#pragma unroll
    for (int first = 0; first < kEntries / 16; first += kAtOnce) {
      float s[kRowTiles][2 * kAtOnce][4] = {};
#pragma unroll
      for (int k = 0; k < S::kKSlice / 16; ++k) {
#pragma unroll
        for (int n = 0; n < kAtOnce; ++n) {
          uint32_t b[4];
          LoadMatrix4(b, k_tile + (16 * (first + n) + lane % 8 + lane / 16 * 8) * S::kKPitch +
                             part * S::kKSlice + 16 * k + lane / 8 % 2 * 8);
#pragma unroll
          for (int t = 0; t < kRowTiles; ++t) {
            MmaF16(s[t][2 * n], q[t][k], b[0], b[1]);
            MmaF16(s[t][2 * n + 1], q[t][k], b[2], b[3]);
          }
        }
      }
#pragma unroll
      for (int t = 0; t < kRowTiles; ++t) {
        float* to = scores + (part * S::kRows + m + 16 * t + lane / 4) * S::kScorePitch +
                    16 * first + lane % 4 * 2;
#pragma unroll
        for (int n = 0; n < 2 * kAtOnce; ++n) {
          *reinterpret_cast<float2*>(to + 8 * n) = make_float2(s[t][n][0], s[t][n][1]);
          *reinterpret_cast<float2*>(to + 8 * n + 8 * S::kScorePitch) =
              make_float2(s[t][n][2], s[t][n][3]);
        }
      }
    }
    __syncthreads();

    // Where warps are few, two rows at a time: the steps of one fill the waits of the other.
    constexpr int kTogether = kRowTiles;
#pragma unroll 1
    for (int r0 = warp * kTogether; r0 < S::kRows; r0 += 8 * kTogether) {
      float s[kTogether], before[kTogether], next[kTogether], total[kTogether];
      __half p[kTogether];
#pragma unroll
      for (int i = 0; i < kTogether; ++i) {
        s[i] = 0;
#pragma unroll
        for (int other = 0; other < S::kParts; ++other)
          s[i] += scores[(other * S::kRows + r0 + i) * S::kScorePitch + lane];
        s[i] = base + lane < limits[r0 + i] ? s[i] * args.scale : -INFINITY;
        before[i] = highest[r0 + i];
        next[i] = fmaxf(before[i], WarpMax(s[i]));
      }
#pragma unroll
      for (int i = 0; i < kTogether; ++i) {
        // A row may see nothing of this tile: then nothing changes, bit for bit.
        p[i] = next[i] == -INFINITY ? __half(0.0f) : __float2half_rn(expf(s[i] - next[i]));
        total[i] = WarpSum(__half2float(p[i]));
        probs[(r0 + i) * S::kProbPitch + lane] = p[i];
      }
      __syncwarp();  // all lanes have read highest
      if (lane < kTogether) {
        constexpr int kLast = kTogether - 1;
        int r = r0 + lane;
        float now = lane == 0 ? next[0] : next[kLast];
        float keep = now == -INFINITY ? 1.0f : expf((lane == 0 ? before[0] : before[kLast]) - now);
        highest[r] = now, keeps[r] = keep;
        sums[r] = fmaf(sums[r], keep, lane == 0 ? total[0] : total[kLast]);
      }
    }
    __syncthreads();

    float keep[kRowTiles][2];
    uint32_t a[kRowTiles][kEntries / 16][4];
#pragma unroll
    for (int t = 0; t < kRowTiles; ++t) {
      int row = m + 16 * t;
      keep[t][0] = keeps[row + lane / 4], keep[t][1] = keeps[row + lane / 4 + 8];
#pragma unroll
      for (int k = 0; k < kEntries / 16; ++k)
        LoadMatrix4(a[t][k], probs + (row + lane % 16) * S::kProbPitch + 16 * k + lane / 16 * 8);
    }
#pragma unroll
    for (int d = 0; d < S::kSlice / 16; ++d) {
#pragma unroll
      for (int t = 0; t < kRowTiles; ++t) {
#pragma unroll
        for (int e = 0; e < 4; ++e)
          acc[t][2 * d][e] *= keep[t][e / 2], acc[t][2 * d + 1][e] *= keep[t][e / 2];
      }
#pragma unroll
      for (int k = 0; k < kEntries / 16; ++k) {
        uint32_t b[4];
        LoadMatrix4Transposed(b, v_tile + (16 * k + lane % 16) * S::kVPitch + part * S::kSlice +
                                     16 * d + lane / 16 * 8);
#pragma unroll
        for (int t = 0; t < kRowTiles; ++t) {
          MmaF16(acc[t][2 * d], a[t][k], b[0], b[1]);
          MmaF16(acc[t][2 * d + 1], a[t][k], b[2], b[3]);
        }
      }
    }
  }

  bool whole = args.max_splits == 1;
#pragma unroll
  for (int i = 0; i < 2 * kRowTiles; ++i) {
    int half = i % 2, r = m + i / 2 * 16 + lane / 4 + half * 8, token = token_of(r);
    if (token < 0) continue;
    int head = head_of(r);
    size_t index = PartialIndex(args, token, head, split);
    size_t at = whole ? (static_cast<size_t>(token) * args.heads + head) * kV : index * kV;
    float* out = whole ? args.out : PartialValues(args);
    if (!whole && part == 0 && lane % 4 == 0)
      PartialStats(args)[index] = make_float2(highest[r], sums[r]);
    float divisor = whole ? sums[r] : 1.0f;
#pragma unroll
    for (int d = 0; d < S::kSlice / 8; ++d) {
      size_t to = at + part * S::kSlice + 8 * d + lane % 4 * 2;
      float2 v =
          make_float2(acc[i / 2][d][2 * half] / divisor, acc[i / 2][d][2 * half + 1] / divisor);
      if (out != nullptr) *reinterpret_cast<float2*>(out + to) = v;
      if (whole && args.emit.values.bf16 != nullptr) {
        *reinterpret_cast<__nv_bfloat162*>(args.emit.values.bf16 + to) =
            __floats2bfloat162_rn(v.x, v.y);
      }
    }
  }
}

template <int kK, int kV, bool kShared, int kMTiles, int kRowTiles = 1>
int Launch(const AttentionArgs& args, Stream stream) {
  using S = Shape<kK, kV, kShared, kMTiles, kRowTiles>;
  constexpr auto kKernel = AttentionMmaKernel<kK, kV, kShared, kMTiles, kRowTiles>;
  static const int kPrepared = static_cast<int>(
      cudaFuncSetAttribute(kKernel, cudaFuncAttributeMaxDynamicSharedMemorySize, S::kSharedBytes));
  if (kPrepared != 0) return kPrepared;
  int group = args.heads / args.kv_heads;
  Tiling tiling;
  tiling.heads_per_block = std::min(group, S::kRows);
  tiling.head_groups = CeilDiv(group, tiling.heads_per_block);
  tiling.tokens_per_block = args.consecutive ? S::kRows / tiling.heads_per_block : 1;
  dim3 grid(args.max_splits, args.kv_heads * tiling.head_groups,
            CeilDiv(args.at.rows, tiling.tokens_per_block));
  return packtrain::cuda::Launch(kKernel, grid, kThreads, S::kSharedBytes, stream, args, tiling);
}

// Shared memory that a block may have: 99 KiB on desktop cards, 227 KiB on an H100.
int MaxSharedBytes() {
  static const int kBytes = [] {
    int device = 0, bytes = 0;
    cudaGetDevice(&device);
    cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
    return bytes;
  }();
  return kBytes;
}

}  // namespace

int AttentionTensorCores(const AttentionArgs& args, Stream stream) {
  if (args.type == KvType::kF32) return -1;
  // Rows that share a pass cannot have selections or splits of their own.
  AttentionArgs a = args;
  a.consecutive = args.consecutive && args.selection == nullptr && args.max_splits == 1;
  if (a.v_cache == nullptr) {
    if (a.k_dim != 576 || a.v_dim != 512) return -1;
    a.consecutive = false;
    // All heads of a token in one block, where its tiles have room: 4 KiB is for static arrays.
    if (a.max_splits == 1 && a.heads > 32 &&
        Shape<576, 512, true, 4, 2>::kSharedBytes + 4096 <= MaxSharedBytes()) {
      return Launch<576, 512, true, 4, 2>(a, stream);
    }
    return Launch<576, 512, true, 2>(a, stream);
  }
  if (a.k_dim == 256 && a.v_dim == 256) {
    return a.consecutive ? Launch<256, 256, false, 4>(a, stream)
                         : Launch<256, 256, false, 1>(a, stream);
  }
  if (a.k_dim == 128 && a.v_dim == 128) {
    return a.consecutive ? Launch<128, 128, false, 4>(a, stream)
                         : Launch<128, 128, false, 1>(a, stream);
  }
  return -1;
}

}  // namespace packtrain::cuda

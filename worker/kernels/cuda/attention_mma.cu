// Attention on the tensor cores: f16 operands, f32 sums.
//
// A block of 8 warps works on up to 16 * kMTiles query rows (heads of one or several tokens that
// read the same kv head) and walks the context in tiles of 32 entries, copied to shared memory as
// f16 while the tile before is computed. Warps that share 16 query rows split the dimensions: of
// the keys, each has its queries in registers and their partial scores are added up in order; of
// the values, each keeps its sums in registers.

#include "worker/kernels/cuda/attention.cuh"

namespace packtrain::cuda {
namespace {

constexpr int kThreads = 256, kEntries = 32;

template <int kK, int kV, bool kShared, int kMTiles>
struct Shape {
  static constexpr int kRows = 16 * kMTiles;
  static constexpr int kKPitch = kK + 8, kVPitch = kShared ? kKPitch : kV + 8;
  static constexpr int kScorePitch = kEntries + 8, kProbPitch = kEntries + 8;
  static constexpr int kParts = 8 / kMTiles;   // warps that share an m tile
  static constexpr int kKSlice = kK / kParts;  // key dims of a warp
  static constexpr int kSlice = kV / kParts;   // value dims of a warp
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

template <int kK, int kV, bool kShared, int kMTiles>
__global__ void __launch_bounds__(kThreads, 2)
    AttentionMmaKernel(const __grid_constant__ AttentionArgs args,
                       const __grid_constant__ Tiling tiling) {
  using S = Shape<kK, kV, kShared, kMTiles>;
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
  int m = warp % kMTiles, part = warp / kMTiles;
  uint32_t q[S::kKSlice / 16][4];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    int r = 16 * m + lane / 4 + 8 * half, token = token_of(r);
    const float* from = args.q + static_cast<size_t>(max(token, 0)) * args.q_stride +
                        static_cast<size_t>(token >= 0 ? head_of(r) : 0) * args.q_head_stride +
                        part * S::kKSlice + lane % 4 * 2;
    auto pair = [&](int i) {
      float2 v = token >= 0 ? *reinterpret_cast<const float2*>(from + i) : make_float2(0, 0);
      auto finite = [](float f) { return fminf(fmaxf(f, -65504.0f), 65504.0f); };
      return PackHalves(finite(v.x), finite(v.y));
    };
#pragma unroll
    for (int k = 0; k < S::kKSlice / 16; ++k)
      q[k][half] = pair(16 * k), q[k][2 + half] = pair(16 * k + 8);
  }

  float acc[S::kSlice / 8][4] = {};
  for (int base = range.begin; base < range.end; base += kEntries) {
    const __half* k_tile = tiles + base / kEntries % 2 * S::kTileHalves;
    const __half* v_tile = k_tile + S::kKeyHalves * (kShared ? 0 : 1);
    CopyWait<0>();
    __syncthreads();
    if (base + kEntries < range.end) copy_tile(base + kEntries);
    find_rows(base + 2 * kEntries);

    {
      float s[kEntries / 8][4] = {};
#pragma unroll
      for (int k = 0; k < S::kKSlice / 16; ++k) {
#pragma unroll
        for (int n = 0; n < kEntries / 16; ++n) {
          uint32_t b[4];
          LoadMatrix4(b, k_tile + (16 * n + lane % 8 + lane / 16 * 8) * S::kKPitch +
                             part * S::kKSlice + 16 * k + lane / 8 % 2 * 8);
          MmaF16(s[2 * n], q[k], b[0], b[1]);
          MmaF16(s[2 * n + 1], q[k], b[2], b[3]);
        }
      }
      float* to = scores + (part * S::kRows + 16 * m + lane / 4) * S::kScorePitch + lane % 4 * 2;
#pragma unroll
      for (int n = 0; n < kEntries / 8; ++n) {
        *reinterpret_cast<float2*>(to + 8 * n) = make_float2(s[n][0], s[n][1]);
        *reinterpret_cast<float2*>(to + 8 * n + 8 * S::kScorePitch) = make_float2(s[n][2], s[n][3]);
      }
    }
    __syncthreads();

    for (int r = warp; r < S::kRows; r += 8) {
      float s = 0;
#pragma unroll
      for (int p = 0; p < S::kParts; ++p) s += scores[(p * S::kRows + r) * S::kScorePitch + lane];
      s = base + lane < limits[r] ? s * args.scale : -INFINITY;
      float before = highest[r];
      float next = fmaxf(before, WarpMax(s));
      // A row may see nothing of this tile: then nothing changes, bit for bit.
      __half p = next == -INFINITY ? __half(0.0f) : __float2half_rn(expf(s - next));
      float keep = next == -INFINITY ? 1.0f : expf(before - next);
      float total = WarpSum(__half2float(p));
      probs[r * S::kProbPitch + lane] = p;
      __syncwarp();  // all lanes have read highest[r]
      if (lane == 0) highest[r] = next, keeps[r] = keep, sums[r] = fmaf(sums[r], keep, total);
    }
    __syncthreads();

    float keep_low = keeps[16 * m + lane / 4], keep_high = keeps[16 * m + lane / 4 + 8];
    uint32_t a[kEntries / 16][4];
#pragma unroll
    for (int k = 0; k < kEntries / 16; ++k) {
      LoadMatrix4(a[k], probs + (16 * m + lane % 16) * S::kProbPitch + 16 * k + lane / 16 * 8);
    }
#pragma unroll
    for (int d = 0; d < S::kSlice / 16; ++d) {
      float* low = acc[2 * d];
      float* high = acc[2 * d + 1];
      low[0] *= keep_low, low[1] *= keep_low, low[2] *= keep_high, low[3] *= keep_high;
      high[0] *= keep_low, high[1] *= keep_low, high[2] *= keep_high, high[3] *= keep_high;
#pragma unroll
      for (int k = 0; k < kEntries / 16; ++k) {
        uint32_t b[4];
        LoadMatrix4Transposed(b, v_tile + (16 * k + lane % 16) * S::kVPitch + part * S::kSlice +
                                     16 * d + lane / 16 * 8);
        MmaF16(low, a[k], b[0], b[1]);
        MmaF16(high, a[k], b[2], b[3]);
      }
    }
  }

  bool whole = args.max_splits == 1;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    int r = 16 * m + lane / 4 + half * 8, token = token_of(r);
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
      float2 v = make_float2(acc[d][2 * half] / divisor, acc[d][2 * half + 1] / divisor);
      if (out != nullptr) *reinterpret_cast<float2*>(out + to) = v;
      if (whole && args.emit.values.bf16 != nullptr) {
        *reinterpret_cast<__nv_bfloat162*>(args.emit.values.bf16 + to) =
            __floats2bfloat162_rn(v.x, v.y);
      }
    }
  }
}

template <int kK, int kV, bool kShared, int kMTiles>
int Launch(const AttentionArgs& args, Stream stream) {
  using S = Shape<kK, kV, kShared, kMTiles>;
  static const int kPrepared = static_cast<int>(
      cudaFuncSetAttribute(AttentionMmaKernel<kK, kV, kShared, kMTiles>,
                           cudaFuncAttributeMaxDynamicSharedMemorySize, S::kSharedBytes));
  if (kPrepared != 0) return kPrepared;
  int group = args.heads / args.kv_heads;
  Tiling tiling;
  tiling.heads_per_block = std::min(group, S::kRows);
  tiling.head_groups = CeilDiv(group, tiling.heads_per_block);
  tiling.tokens_per_block = args.consecutive ? S::kRows / tiling.heads_per_block : 1;
  dim3 grid(args.max_splits, args.kv_heads * tiling.head_groups,
            CeilDiv(args.at.rows, tiling.tokens_per_block));
  return packtrain::cuda::Launch(AttentionMmaKernel<kK, kV, kShared, kMTiles>, grid, kThreads,
                                 S::kSharedBytes, stream, args, tiling);
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

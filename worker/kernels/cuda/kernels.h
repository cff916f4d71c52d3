#pragma once

// CUDA kernels as host launchers: pure functions over device memory that the caller owns. No CUDA
// header is needed to call them. Every launcher enqueues on `stream` and returns at once: 0, or the
// CUDA error code of the launch (ErrorText names it). Shapes are the caller's business; what a
// launcher cannot do is refused with the code for an invalid value.
//
// Exact class: the bits of a token's result do not depend on the other tokens of the call, nor on
// the run. Sums run in an order fixed by the shape; nothing adds floats atomically.
//
// All arrays are row-major and dense unless a stride is named; strides count elements. Weights are
// in the file's layout, 16-byte aligned, and must be readable for 16 bytes past their end.

#include <cstddef>
#include <cstdint>

#include "common/quant/type.h"

struct CUstream_st;

namespace packtrain::cuda {

using Stream = CUstream_st*;

const char* ErrorText(int code);

// Uploads the codebooks to the current device. Once per process and device, before any kernel.
int PrepareDevice();

// ---------------------------------------------------------------------------------------------
// Activations

// Rows of n values in blocks of 32, as int8 with (scale, scale * sum) as two f32: what MatVec
// reads. First the first 16 values of every block, then the others, then the pairs of f32, so that
// neighbouring lanes read neighbouring bytes. n % 32 == 0.
constexpr size_t Q8RowBytes(size_t n) { return (n + n / 4 + 15) / 16 * 16; }

// Where a kernel that makes activations puts them; any may be null. bf16 is what Gemm reads. Rows
// are dense, except that f32 rows may have a stride. q8 wants n % 32 == 0.
struct ActivationOut {
  float* f32 = nullptr;
  int f32_stride = 0;  // 0: n
  void* q8 = nullptr;
  uint16_t* bf16 = nullptr;
};

// out = x. x [rows, n], row stride `stride`.
int Convert(const float* x, int rows, int n, int stride, ActivationOut out, Stream stream);

// h += delta (if delta), then out = rms(h, weight). h, delta [rows, n].
// h has row stride `stride`.
int RmsNorm(float* h, int stride, const float* delta, const float* weight, float eps, int rows,
            int n, ActivationOut out, Stream stream);

// y = (x - mean) / sqrt(var + eps) * weight + bias. x, y [rows, n] with row stride `stride`.
int LayerNorm(const float* x, float* y, int stride, const float* weight, const float* bias,
              float eps, int rows, int n, Stream stream);

// out = silu(gate) * up, all [rows, n]. gate and up have row stride `stride`.
int SwiGlu(const float* gate, const float* up, int stride, int rows, int n, ActivationOut out,
           Stream stream);

// out = x * sigmoid(gate). x [rows, n] dense; gate element i of row r is at
// gate[r * gate_stride + (i / head_dim) * gate_head_stride + i % head_dim].
int SigmoidGate(const float* x, const float* gate, int gate_stride, int gate_head_stride,
                int head_dim, int rows, int n, ActivationOut out, Stream stream);

// y += x * scale, where scale is sigmoid(scale_logit[row]) or 1 if null. [rows, n] dense.
int AddScaled(float* y, const float* x, const float* scale_logit, int rows, int n, Stream stream);

// y[r][i] += bias[i]. y [rows, n] dense.
int AddBias(float* y, const float* bias, int rows, int n, Stream stream);

// cos_sin [rows, pairs] of (cos, sin) for angles position * frequency, computed in f64.
//   frequencies  [pairs] f64 on the device (with YaRN already in), magnitude: M of YaRN, else 1
int RopeTable(const int32_t* positions, const double* frequencies, float magnitude, int rows,
              int pairs, float* cos_sin, Stream stream);

enum class RopeKind { kNorm, kNeox };

// Rotates x[row * row_stride + head * head_stride + 0 .. 2 * pairs) in place.
int Rope(float* x, int rows, int heads, int row_stride, int head_stride, RopeKind kind,
         const float* cos_sin, int pairs, Stream stream);

// ---------------------------------------------------------------------------------------------
// Weights

// One matrix of a MatVec launch: y[t][r] = sum over i of w[r, i] * x_t[i].
struct MatVecPart {
  const void* w = nullptr;   // `rows` rows of n weights; with experts: those of expert 0
  size_t expert_stride = 0;  // bytes from one expert to the next
  float* y = nullptr;        // [tokens or pairs, rows]
  int y_stride = 0;          // 0: rows
  int rows = 0;
};

inline constexpr int kMaxMatVecParts = 4;

// Several matrices of one type that read the same activations.
struct MatVecArgs {
  MatVecPart parts[kMaxMatVecParts];
  int num_parts = 1;
  int n = 0;
  const void* x = nullptr;  // Q8 rows; f32 rows for F32, F16, BF16
  int tokens = 0;           // 1..8 without experts, any number of pairs with
  // With experts, `tokens` counts pairs. Pair p uses expert slot[ids[p]] (ids null: p %
  // num_experts; slot null: the expert itself) and activation row p / pairs_per_row. Pairs with a
  // negative id or slot are skipped and their y is not written.
  bool experts = false;
  int num_experts = 0;
  const int32_t* ids = nullptr;
  const int32_t* slot = nullptr;
  int pairs_per_row = 1;
};

// out[p] = silu(gate_e x) * (up_e x) for pairs p of a row and an expert; bits as MatVec and SwiGlu
// give.
struct GateUpArgs {
  const void* gate = nullptr;  // of expert 0: `rows` rows of n weights
  const void* up = nullptr;
  size_t expert_stride = 0;      // bytes, of both
  const int32_t* ids = nullptr;  // [pairs]; negative ones are skipped. Null: expert 0
  int rows = 0;                  // % 32 == 0
  int n = 0;
  const void* x = nullptr;  // Q8 rows; pair p reads row p / pairs_per_row
  int pairs = 0;
  int pairs_per_row = 1;
  ActivationOut out;  // [pairs, rows]
};

inline constexpr int kMaxPicks = 32;

// y[t] = sum over picks k, in order, of weights[t, k] * (w_e x[t, k]) + shared[t] *
// sigmoid(shared_logit[t]); bits as MatVec, CombineExperts and AddScaled give.
struct DownArgs {
  const void* w = nullptr;         // of expert 0: `rows` rows of n weights
  size_t expert_stride = 0;        // bytes
  const int32_t* ids = nullptr;    // [tokens, top_k]; negative ones add nothing
  const float* weights = nullptr;  // [tokens, top_k]
  int rows = 0;
  int n = 0;
  const void* x = nullptr;  // Q8 rows [tokens * top_k]
  int tokens = 0;
  int top_k = 0;                        // <= kMaxPicks
  const float* shared = nullptr;        // [tokens, rows], may be null
  const float* shared_logit = nullptr;  // [tokens], null: factor 1
  float* y = nullptr;                   // [tokens, rows]
};

// Groups of tokens, each with its own matrices: y[t][r] = sum over i of w[r, i] * x_t[i], weights
// and activations as bf16, sums in f32.
struct MatMulArgs {
  MatVecPart parts[3];  // y [all tokens, rows]; expert_stride: from one group's to the next
  int num_parts = 1;
  int n = 0;
  const uint16_t* x = nullptr;         // bf16 rows, dense
  const int32_t* row_index = nullptr;  // the row of x of each token; null: the token itself
  int groups = 1;
  // [groups + 1] device: group g has tokens [o[g], o[g + 1]). Null: one group.
  const int32_t* offsets = nullptr;
  int tokens = 0;  // of all groups
};

// Kernels of one weight type.
struct WeightKernels {
  TensorType type;
  bool f32_activations;  // MatVec reads f32 rows instead of Q8 rows
  // Products of 1..8 tokens or of (token, expert) pairs; one pass over the weights, memory-bound.
  int (*mat_vec)(const MatVecArgs& args, Stream stream);
  // Null with f32_activations.
  int (*gate_up)(const GateUpArgs& args, Stream stream);
  int (*down)(const DownArgs& args, Stream stream);
  // Products of any number of tokens; one pass over the weights for each 64 of them. Null where
  // weights are not quantised.
  int (*mat_mul)(const MatMulArgs& args, Stream stream);
  // values [count] of the blocks at w, or of rows row_ids[0..) of n weights if row_ids.
  // f32 bit for bit as Decode of common/quant; bf16 rounds to nearest even.
  int (*decode_f32)(const void* w, size_t count, const int32_t* row_ids, int n, float* values,
                    Stream stream);
  int (*decode_bf16)(const void* w, size_t count, uint16_t* values, Stream stream);
};

// nullptr for types that are not weights.
const WeightKernels* FindWeightKernels(TensorType type);

// C[g][m, n] = sum over k of A[g][m, k] * B[g][n, k] in bf16 with f32 sums, for groups g of rows.
struct GemmArgs {
  const uint16_t* a = nullptr;
  int lda = 0;
  size_t a_group_stride = 0;
  const int32_t* row_index = nullptr;  // A's row for each row of C; null: the same row
  const uint16_t* b = nullptr;         // [groups][n, k] dense
  size_t b_group_stride = 0;
  float* c = nullptr;
  uint16_t* c_bf16 = nullptr;  // instead of c
  int ldc = 0;
  size_t c_group_stride = 0;
  int groups = 1;
  const int32_t* offsets = nullptr;  // [groups + 1] device: group g owns C rows [o[g], o[g + 1])
  int m = 0;                         // rows of each group if offsets is null, else of all together
  int n = 0;
  int k = 0;  // % 32 == 0; lda % 8 == 0
};
int Gemm(const GemmArgs& args, Stream stream);

// The same without offsets and row_index, by cuBLASLt where it has a way: 680 to 815 TFLOP/s on an
// H200 from 512 rows on, where Gemm has 110 to 280 (tests/gpu/bench.cc).
int GemmBlasLt(const GemmArgs& args, Stream stream);

// c [m, n] (row stride ldc) = a [m, k] b^T [n, k] in f32 throughout: prefill with unquantised
// weights.
int GemmF32(const float* a, const float* b, float* c, int m, int n, int k, int ldc, Stream stream);

// ---------------------------------------------------------------------------------------------
// Mixture of experts

struct RouterArgs {
  const float* logits = nullptr;  // [tokens, num_experts]
  const float* bias = nullptr;    // [num_experts] or null; for the selection only
  int tokens = 0;
  int num_experts = 0;  // <= 512
  int top_k = 0;        // <= kMaxPicks
  bool sigmoid = false;
  int groups = 0;  // > 1: only experts of the `groups_used` best groups
  int groups_used = 0;
  bool normalize = false;
  float scale = 1;
  int32_t* ids = nullptr;    // [tokens, top_k], best first, ties to the lower expert
  float* weights = nullptr;  // [tokens, top_k]
};
int Router(const RouterArgs& args, Stream stream);

// y[t] = (accumulate ? y[t] : 0) + sum over ranks, in rank order, of weight * x[row of the pair].
// A pair's row is the pair itself, or row_of_pair[pair]; pairs with a negative id, slot or row add
// nothing. x [.., n], y [tokens, n].
int CombineExperts(const float* x, const int32_t* ids, const int32_t* slot,
                   const int32_t* row_of_pair, const float* weights, int tokens, int top_k, int n,
                   bool accumulate, float* y, Stream stream);

// Sorts pairs by expert, each expert's in order of the pair: offsets [num_experts + 1],
// token_of_row [tokens * top_k], row_of_pair [tokens * top_k] (-1 where slot or id is negative).
int SortPairs(const int32_t* ids, const int32_t* slot, int tokens, int top_k, int num_experts,
              int32_t* offsets, int32_t* token_of_row, int32_t* row_of_pair, Stream stream);

// ---------------------------------------------------------------------------------------------
// KV cache: pages of 64 positions. A cache row lies at
// base + (page_table[position / 64] * 64 + position % 64) * row_bytes.

enum class KvType : int { kF32 = 0, kF16 = 1, kQ8_0 = 2, kQ4_1 = 3 };

// Bytes of one cache row of n values; n % 32 == 0 for quantised types.
constexpr size_t KvRowBytes(KvType type, size_t n) {
  switch (type) {
    case KvType::kF32:
      return n * 4;
    case KvType::kF16:
      return n * 2;
    case KvType::kQ8_0:
      return n / 32 * 34;
    case KvType::kQ4_1:
      return n / 32 * 20;
  }
  return 0;
}

// What rows of a ubatch need to find their cache pages: row r belongs to the sequence whose page
// table starts at page_tables + table_offset[r], and stands at positions[r].
struct KvRows {
  const int32_t* page_tables = nullptr;
  const int32_t* table_offset = nullptr;
  const int32_t* positions = nullptr;
  int rows = 0;
};

// Stores x[r] (row stride `stride`, n values) at row r's own position.
int KvStore(const KvRows& at, const float* x, int stride, int n, KvType type, void* cache,
            Stream stream);

// Copies pages inside a cache: to[i] := from[i].
int KvCopyPages(const int32_t* from, const int32_t* to, int count, size_t page_bytes, void* cache,
                Stream stream);

// Heads of a decode step between the projections and attention: norms, RoPE, new cache rows.
struct GqaHeadsArgs {
  KvRows at;
  const float* q = nullptr;  // head h of row r at q[r * q_stride + h * q_head_stride]
  int q_stride = 0;
  int q_head_stride = 0;
  const float* k = nullptr;  // [rows, kv_heads, k_dim]
  const float* v = nullptr;  // [rows, kv_heads, v_dim]
  int heads = 0;
  int kv_heads = 0;
  int k_dim = 0;                  // < 1024; % 32 == 0 for quantised types
  int v_dim = 0;                  // likewise
  const float* q_norm = nullptr;  // [k_dim], null: no norm
  const float* k_norm = nullptr;
  float eps = 0;
  RopeKind rope = RopeKind::kNeox;
  const float* cos_sin = nullptr;  // [rows, pairs] pairs
  int pairs = 0;
  KvType type = KvType::kF16;
  void* k_cache = nullptr;
  void* v_cache = nullptr;
  float* q_out = nullptr;  // [rows, heads, k_dim]
};
int GqaHeads(const GqaHeadsArgs& args, Stream stream);

// The same of MLA: q's last 2 * pairs values go, rotated, behind the absorbed ones; kv is normed,
// rotated and stored.
struct MlaHeadsArgs {
  KvRows at;
  const float* q = nullptr;  // [rows, heads, nope + 2 * pairs]
  int heads = 0;
  int nope = 0;
  const float* kv = nullptr;       // [rows, rank + 2 * pairs]
  int rank = 0;                    // rank + 2 * pairs <= 1024, % 32 == 0 for quantised types
  const float* kv_norm = nullptr;  // [rank]
  float eps = 0;
  RopeKind rope = RopeKind::kNorm;
  const float* cos_sin = nullptr;  // [rows, pairs] pairs
  int pairs = 0;
  KvType type = KvType::kF16;
  void* cache = nullptr;
  ActivationOut q_nope;       // [rows * heads, nope]
  float* absorbed = nullptr;  // [rows, heads, rank + 2 * pairs]; the last 2 * pairs are written
};
int MlaHeads(const MlaHeadsArgs& args, Stream stream);

// Where attention puts its result, also instead of f32. With one split: `values.bf16` only.
struct AttentionOut {
  ActivationOut values;  // rows of heads * v_dim values, or with `per_head` of v_dim
  bool per_head = false;
  // Times sigmoid of gate[row * gate_stride + head * gate_head_stride + i]; null: not.
  const float* gate = nullptr;
  int gate_stride = 0;
  int gate_head_stride = 0;
};

// Attention of every row's heads over its cache positions 0 .. positions[r], or over the listed
// ones. Query head h reads kv head h / (heads / kv_heads).
//   q    head h of row r at q[r * q_stride + h * q_head_stride], k_dim values; 16-byte aligned
//   K and V cache rows hold kv_heads * k_dim and kv_heads * v_dim values. MLA in absorbed form is
//   kv_heads = 1, v_cache = null: the values are the first v_dim of the key row.
//   out  [rows, heads, v_dim] dense
// The context is split in a way that depends on the row's position only; partial results are
// combined in order. Tensor cores (f16 operands, f32 sums) where type, dims and q allow, else f32.
struct AttentionArgs {
  KvRows at;
  const float* q = nullptr;
  int q_stride = 0;
  int q_head_stride = 0;
  int heads = 0;
  int kv_heads = 1;
  int k_dim = 0;  // % 32 == 0 for quantised types
  int v_dim = 0;  // likewise; <= 1024
  float scale = 1;
  KvType type = KvType::kF16;
  const void* k_cache = nullptr;
  const void* v_cache = nullptr;
  // [rows, selection_stride] ascending positions; row r has min(selection_stride, positions[r] + 1)
  // of them. Null: dense.
  const int32_t* selection = nullptr;
  int selection_stride = 0;
  // All rows are consecutive positions of one sequence: several share a pass over the cache.
  bool consecutive = false;
  int max_splits = 1;         // of the context; the same for every decode step of an engine
  void* workspace = nullptr;  // AttentionWorkspaceBytes of it; may be null if max_splits is 1
  float* out = nullptr;       // may be null
  AttentionOut emit;          // with several splits, v_dim % 32 == 0 for q8
};
size_t AttentionWorkspaceBytes(int rows, int heads, int v_dim, int max_splits);
int Attention(const AttentionArgs& args, Stream stream);

// scores[r][t] = scale * sum over h of w[r][h] * max(0, q[r][h] . key_t), t = 0 .. positions[r];
// -inf for positions[r] < t < columns. q [rows, heads, dim], w [rows, heads], heads <= 64,
// dim <= 128, % 32 == 0 for quantised types. Tensor cores where type and dim allow.
struct IndexerArgs {
  KvRows at;
  const float* q = nullptr;
  const float* w = nullptr;
  int heads = 0;
  int dim = 0;
  float scale = 1;
  KvType type = KvType::kF16;
  const void* cache = nullptr;
  int columns = 0;
  float* scores = nullptr;  // [rows, columns]
};
int IndexerScores(const IndexerArgs& args, Stream stream);

// The min(k, limit) largest of x[r][0 .. limit), ties to the lower index, in ascending order of
// index; -1 behind them. limit is limits[r] + 1 if limits, else n. NaN sorts as -inf. indices
// [rows, k].
int TopK(const float* x, int rows, int n, const int32_t* limits, int k, int32_t* indices,
         Stream stream);

// ---------------------------------------------------------------------------------------------
// Gated DeltaNet

// Rows of the ubatch, one behind the other by sequence: sequence s owns rows
// [row_offset[s], row_offset[s + 1]) and the states of slot[s].
struct DeltaNetArgs {
  int sequences = 0;
  int rows = 0;
  const int32_t* row_offset = nullptr;  // [sequences + 1] device
  const int32_t* slot = nullptr;        // [sequences] device
  int k_heads = 0;
  int v_heads = 0;  // V head v uses K head v % k_heads
  int k_dim = 0;    // of a head; <= 128, % 4 == 0
  int v_dim = 0;    // % 4 == 0; <= 128 for longer sequences
  // Longer sequences than 64 rows go by chunks, which differs from token by token in rounding. They
  // need the rows' positions and u and beta_logit, which they overwrite.
  int longest = 0;                     // rows of a sequence
  const int32_t* position = nullptr;   // [rows] device
  float* u = nullptr;                  // [rows, channels] before the convolution, with room for
                                       // rows * max(channels, v_heads (k_dim + 64)) values;
                                       // channels = 2 k_heads k_dim + v_heads v_dim
  const float* conv_weight = nullptr;  // [channels, 4]
  float* conv_state = nullptr;         // [slots, 3, channels], oldest first
  float* beta_logit = nullptr;         // [rows, v_heads]
  const float* alpha = nullptr;        // [rows, v_heads]
  const float* dt_bias = nullptr;      // [v_heads]
  const float* a = nullptr;            // [v_heads], negative
  float* state = nullptr;              // [slots, v_heads, k_dim, v_dim]
  float eps = 1e-6f;
  float* qkv = nullptr;  // [rows, channels] scratch
  float* out = nullptr;  // [rows, v_heads, v_dim], before norm and gate
};
int DeltaNet(const DeltaNetArgs& args, Stream stream);

// DeltaNet and GatedRmsNorm in one kernel, for few rows; qkv and out of DeltaNetArgs are not used.
// v_dim <= 128, % 32 == 0.
struct DeltaNetStepArgs {
  const float* z = nullptr;            // [rows, v_heads, v_dim]
  const float* norm_weight = nullptr;  // [v_dim]
  int32_t* arrived = nullptr;          // [sequences, k_heads], zeros before and after
  ActivationOut out;                   // [rows, v_heads * v_dim]
};
int DeltaNetStep(const DeltaNetArgs& args, const DeltaNetStepArgs& step, Stream stream);

// out = rms(x per head, weight) * silu(z). x, z [rows, heads, dim]; dim % 32 == 0, <= 1024.
int GatedRmsNorm(const float* x, const float* z, const float* weight, float eps, int rows,
                 int heads, int dim, ActivationOut out, Stream stream);

// ---------------------------------------------------------------------------------------------
// Sampling

inline constexpr int kMaxSampleRows = 8;

// How a row's token is chosen, by the rules of worker/ops/sampler without penalties and filters.
struct SampleRow {
  float temperature = 0;
  bool draws = false;       // Gumbel-max with the numbers below, else the largest
  bool wants_sums = false;  // log_sum and relative_sum are wanted
  uint64_t seed = 0;
  uint32_t choice = 0;
  uint32_t position = 0;
};
struct SampledRow {
  int32_t id;  // ties to the lower
  float logit;
  double log_sum;       // of exp(logit)
  double relative_sum;  // of exp((logit - largest) / temperature)
};
struct SampleArgs {
  const float* logits = nullptr;  // [rows, n]
  int n = 0;
  int rows = 0;
  SampleRow row[kMaxSampleRows];
  void* workspace = nullptr;  // SampleWorkspaceBytes
  SampledRow* out = nullptr;  // [rows]
};
size_t SampleWorkspaceBytes();
int Sample(const SampleArgs& args, Stream stream);

// values[r][i] = x[r][indices[r][i]], -inf where the index is negative.
int Gather(const float* x, int rows, int n, const int32_t* indices, int k, float* values,
           Stream stream);

}  // namespace packtrain::cuda

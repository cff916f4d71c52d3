// The attention layers of a CUDA stage. The maths is that of worker/graph.

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cmath>

#include "common/model/buffers.h"
#include "worker/device/cuda/cuda_run.h"

namespace packtrain {
namespace {

constexpr float kIndexNormEps = 1e-6F;          // as worker/graph
constexpr size_t kMaxScores = size_t{1} << 24;  // of the indexer, kept at a time

cuda::RopeKind Kind(RopeKind kind) {
  return kind == RopeKind::kNorm ? cuda::RopeKind::kNorm : cuda::RopeKind::kNeox;
}

size_t Product(int a, int b) { return static_cast<size_t>(a) * static_cast<size_t>(b); }
size_t Product(int a, int b, int c) { return Product(a, b) * static_cast<size_t>(c); }

void Rotate(CudaRun* run, float* x, int heads, int row_stride, int head_stride, RopeKind kind) {
  LAUNCH(run, cuda::Rope(x, run->rows, heads, row_stride, head_stride, Kind(kind), run->cos_sin,
                         run->config.rope.dims / 2, run->stream));
}

// Fills run->selection for the rows of a ubatch that is long enough to be sparse.
void RunIndexer(CudaRun* run, const DeviceLayer& w, const DeviceLayerCache& cache,
                const DeviceActivations& x, const DeviceActivations& q_lora) {
  const ScratchScope scope(run);
  const IndexerConfig& indexer = run->config.indexer;
  const int dim = indexer.head_dim, heads = indexer.num_heads;
  float* keys = run->Take<float>(Product(run->rows, dim));
  DeviceLinear(run, w.index_k, x, keys);
  LAUNCH(run, cuda::LayerNorm(keys, keys, dim, w.index_k_norm, w.index_k_norm_bias, kIndexNormEps,
                              run->rows, dim, run->stream));
  Rotate(run, keys, 1, dim, dim, indexer.rope);
  LAUNCH(run,
         cuda::KvStore(run->at(), keys, dim, dim, run->kv_type, cache.index_keys, run->stream));
  if (!run->sparse()) return;

  float* q = run->Take<float>(Product(run->rows, heads, dim));
  float* head_weights = run->Take<float>(Product(run->rows, heads));
  DeviceLinear(run, w.index_q_b, q_lora, q);
  DeviceLinear(run, w.index_proj, x, head_weights);
  Rotate(run, q, heads, heads * dim, dim, indexer.rope);
  const int columns = run->columns;
  const int fit = static_cast<int>(std::clamp<size_t>(kMaxScores / static_cast<size_t>(columns), 1,
                                                      static_cast<size_t>(run->rows)));
  float* scores = run->Take<float>(Product(fit, columns));
  for (int row = 0; row < run->rows; row += fit) {
    const int count = std::min(fit, run->rows - row);
    cuda::IndexerArgs args;
    args.at = {run->batch.page_tables, run->batch.table_offset + row, run->batch.positions + row,
               count};
    args.q = q + Product(row, heads, dim);
    args.w = head_weights + Product(row, heads);
    args.heads = heads;
    args.dim = dim;
    args.scale = 1.0F / std::sqrt(static_cast<float>(dim * heads));
    args.type = run->kv_type;
    args.cache = cache.index_keys;
    args.columns = columns;
    args.scores = scores;
    LAUNCH(run, cuda::IndexerScores(args, run->stream));
    LAUNCH(run, cuda::TopK(scores, count, columns, run->batch.positions + row, indexer.top_k,
                           run->selection + Product(row, indexer.top_k), run->stream));
  }
}

void Attend(CudaRun* run, cuda::AttentionArgs args) {
  const ScratchScope scope(run);
  args.at = run->at();
  args.type = run->kv_type;
  args.scale = run->config.attention_scale;
  args.max_splits = run->decode() ? kDecodeSplits : 1;
  if (args.max_splits > 1) {
    args.workspace = run->Take<uint8_t>(
        cuda::AttentionWorkspaceBytes(run->rows, args.heads, args.v_dim, args.max_splits));
  }
  if (run->decode() || args.v_cache == nullptr) {
    LAUNCH(run, cuda::Attention(args, run->stream));
    return;
  }
  // Rows of one sequence share passes over its cache.
  args.consecutive = true;
  const float* q = args.q;
  float* out = args.out;
  for (const RowRange& range : run->sequences) {
    args.at = {run->batch.page_tables, run->batch.table_offset + range.first,
               run->batch.positions + range.first, range.rows};
    args.q = q + Product(range.first, args.q_stride);
    args.out = out + Product(range.first, args.heads, args.v_dim);
    LAUNCH(run, cuda::Attention(args, run->stream));
  }
}

// What MLA does with queries, for the run's rows. kv: in a decode step, where nothing has been done
// with the new latent rows yet.
void MlaRows(CudaRun* run, const DeviceLayer& w, const DeviceLayerCache& cache,
             const DeviceActivations& q_input, float* kv, bool sparse, float* y) {
  const ScratchScope scope(run);
  const ModelConfig& config = run->config;
  const int rows = run->rows, heads = config.num_heads, nope = config.mla.nope_dim,
            rope = config.rope.dims;
  const int rank = config.mla.kv_lora_rank, head_dim = nope + rope, row_dim = rank + rope;
  float* q = run->Take<float>(Product(rows, heads, head_dim));
  DeviceLinear(run, w.q_a.empty() ? w.q_direct : w.q_b, q_input, q);

  // Queries in latent space: [rows, heads, rank + rope].
  float* absorbed = run->Take<float>(Product(rows, heads, row_dim));
  {
    const ScratchScope inner(run);
    const DeviceActivations q_nope = run->TakeInput(rows * heads, w.k_b);
    if (run->decode()) {
      cuda::MlaHeadsArgs args;
      args.at = run->at();
      args.q = q;
      args.heads = heads;
      args.nope = nope;
      args.kv = kv;
      args.rank = rank;
      args.kv_norm = w.kv_a_norm;
      args.eps = config.rms_eps;
      args.rope = Kind(config.rope.kind);
      args.cos_sin = run->cos_sin;
      args.pairs = rope / 2;
      args.type = run->kv_type;
      args.cache = cache.latent;
      args.q_nope = q_nope.out();
      args.absorbed = absorbed;
      LAUNCH(run, cuda::MlaHeads(args, run->stream));
    } else {
      Rotate(run, q + nope, heads, heads * head_dim, head_dim, config.rope.kind);
      LAUNCH(run, cuda::Convert(q, rows * heads, nope, head_dim, q_nope.out(), run->stream));
      LAUNCH(run, cuda::Convert(q + nope, rows * heads, rope, head_dim,
                                {.f32 = absorbed + rank, .f32_stride = row_dim}, run->stream));
    }
    DeviceLinearPerHead(run, w.k_b, heads, q_nope, {.f32 = absorbed, .f32_stride = row_dim});
  }

  const DeviceActivations latent = run->TakeInput(rows * heads, w.v_b);
  cuda::AttentionArgs args;
  args.q = absorbed;
  args.q_stride = heads * row_dim;
  args.q_head_stride = row_dim;
  args.heads = heads;
  args.k_dim = row_dim;
  args.v_dim = rank;
  args.k_cache = cache.latent;
  args.out = latent.f32;
  args.emit = {.values = {.q8 = latent.q8, .bf16 = latent.bf16}, .per_head = true};
  if (sparse) {
    args.selection = run->selection;
    args.selection_stride = config.indexer.top_k;
  }
  Attend(run, args);
  if (!run->decode() && ReadsBf16(w.v_b) && ReadsBf16(w.attn_output)) {
    const DeviceActivations values = run->TakeInput(rows, w.attn_output);
    DeviceLinearPerHead(run, w.v_b, heads, latent, {.bf16 = values.bf16});
    DeviceLinear(run, w.attn_output, values, y);
    return;
  }
  const DeviceActivations values = run->TakeActivations(rows, heads * config.mla.value_dim);
  DeviceLinearPerHead(run, w.v_b, heads, latent, {.f32 = values.f32});
  LAUNCH(run, cuda::Convert(values.f32, rows, values.n, values.n,
                            {.q8 = values.q8, .bf16 = values.bf16}, run->stream));
  DeviceLinear(run, w.attn_output, values, y);
}

}  // namespace

void DeviceMla(CudaRun* run, int layer, const DeviceLayer& w, const DeviceLayerCache& cache,
               const DeviceActivations& x, float* y) {
  const ScratchScope scope(run);
  const ModelConfig& config = run->config;
  const int rows = run->rows, rank = config.mla.kv_lora_rank, row_dim = rank + config.rope.dims;
  const IndexerKind indexer = config.layers[static_cast<size_t>(layer)].indexer;

  float* kv = run->Take<float>(Product(rows, row_dim));
  DeviceActivations q_input = x;
  if (w.q_a.empty()) {
    DeviceLinear(run, w.kv_a, x, kv);
  } else {
    q_input = run->TakeActivations(rows, w.q_a.rows);
    DeviceLinears(run, x, {{&w.kv_a, kv}, {&w.q_a, q_input.f32}});
    LAUNCH(run, cuda::RmsNorm(q_input.f32, q_input.n, nullptr, w.q_a_norm, config.rms_eps, rows,
                              q_input.n, q_input.out(), run->stream));
  }
  if (!run->decode()) {
    LAUNCH(run, cuda::RmsNorm(kv, row_dim, nullptr, w.kv_a_norm, config.rms_eps, rows, rank,
                              {.f32 = kv, .f32_stride = row_dim}, run->stream));
    Rotate(run, kv + rank, 1, row_dim, row_dim, config.rope.kind);
    LAUNCH(run,
           cuda::KvStore(run->at(), kv, row_dim, row_dim, run->kv_type, cache.latent, run->stream));
  }
  if (indexer == IndexerKind::kFull) RunIndexer(run, w, cache, x, q_input);
  const bool sparse = indexer != IndexerKind::kNone && run->sparse();
  const int windows = (rows + kMlaRows - 1) / kMlaRows;
  for (int i = 0; i < windows; ++i) {
    // About equally long, so that none becomes a decode step.
    const int first = static_cast<int>(int64_t{rows} * i / windows),
              last = static_cast<int>(int64_t{rows} * (i + 1) / windows);
    const RowWindow window(run, first, last - first);
    MlaRows(run, w, cache, q_input.Rows(first, last - first), kv, sparse,
            y + Product(first, config.hidden_dim));
  }
}

void DeviceGqa(CudaRun* run, const DeviceLayer& w, const DeviceLayerCache& cache,
               const DeviceActivations& x, float* y) {
  const ScratchScope scope(run);
  const ModelConfig& config = run->config;
  const int rows = run->rows, heads = config.num_heads, kv_heads = config.gqa.num_kv_heads;
  const int dim = config.gqa.key_dim, value_dim = config.gqa.value_dim;
  // Each head's query is followed by its gate.
  const int q_stride = config.gqa.output_gate ? 2 * dim : dim;

  float* projected = run->Take<float>(Product(rows, heads, q_stride));
  float* k = run->Take<float>(Product(rows, kv_heads, dim));
  float* v = run->Take<float>(Product(rows, kv_heads, value_dim));
  float* q = run->Take<float>(Product(rows, heads, dim));
  DeviceLinears(run, x, {{&w.q, projected}, {&w.k, k}, {&w.v, v}});
  if (w.q_bias != nullptr)
    LAUNCH(run, cuda::AddBias(projected, w.q_bias, rows, heads * q_stride, run->stream));
  if (w.k_bias != nullptr)
    LAUNCH(run, cuda::AddBias(k, w.k_bias, rows, kv_heads * dim, run->stream));
  if (w.v_bias != nullptr)
    LAUNCH(run, cuda::AddBias(v, w.v_bias, rows, kv_heads * value_dim, run->stream));
  if (run->decode()) {
    cuda::GqaHeadsArgs args;
    args.at = run->at();
    args.q = projected;
    args.q_stride = heads * q_stride;
    args.q_head_stride = q_stride;
    args.k = k;
    args.v = v;
    args.heads = heads;
    args.kv_heads = kv_heads;
    args.k_dim = dim;
    args.v_dim = value_dim;
    args.q_norm = w.q_norm;
    args.k_norm = w.k_norm;
    args.eps = config.rms_eps;
    args.rope = Kind(config.rope.kind);
    args.cos_sin = run->cos_sin;
    args.pairs = config.rope.dims / 2;
    args.type = run->kv_type;
    args.k_cache = cache.k;
    args.v_cache = cache.v;
    args.q_out = q;
    LAUNCH(run, cuda::GqaHeads(args, run->stream));
  } else {
    if (w.k_norm != nullptr) {
      LAUNCH(run, cuda::RmsNorm(k, dim, nullptr, w.k_norm, config.rms_eps, rows * kv_heads, dim,
                                {.f32 = k}, run->stream));
    }
    Rotate(run, k, kv_heads, kv_heads * dim, dim, config.rope.kind);
    LAUNCH(run, cuda::KvStore(run->at(), k, kv_heads * dim, kv_heads * dim, run->kv_type, cache.k,
                              run->stream));
    LAUNCH(run, cuda::KvStore(run->at(), v, kv_heads * value_dim, kv_heads * value_dim,
                              run->kv_type, cache.v, run->stream));
    if (w.q_norm != nullptr) {
      LAUNCH(run, cuda::RmsNorm(projected, q_stride, nullptr, w.q_norm, config.rms_eps,
                                rows * heads, dim, {.f32 = q}, run->stream));
    } else {
      LAUNCH(run, cuda::Convert(projected, rows * heads, dim, q_stride, {.f32 = q}, run->stream));
    }
    Rotate(run, q, heads, heads * dim, dim, config.rope.kind);
  }

  const DeviceActivations attended = run->TakeActivations(rows, heads * value_dim);
  cuda::AttentionArgs args;
  args.q = q;
  args.q_stride = heads * dim;
  args.q_head_stride = dim;
  args.heads = heads;
  args.kv_heads = kv_heads;
  args.k_dim = dim;
  args.v_dim = value_dim;
  args.k_cache = cache.k;
  args.v_cache = cache.v;
  args.out = attended.f32;
  if (run->decode()) {
    args.out = nullptr;
    args.emit.values = attended.out();
    if (config.gqa.output_gate) {
      args.emit.gate = projected + dim;
      args.emit.gate_stride = heads * q_stride;
      args.emit.gate_head_stride = q_stride;
    }
    Attend(run, args);
  } else {
    Attend(run, args);
    if (config.gqa.output_gate) {
      LAUNCH(run, cuda::SigmoidGate(attended.f32, projected + dim, heads * q_stride, q_stride,
                                    value_dim, rows, attended.n, attended.out(), run->stream));
    } else {
      LAUNCH(run, cuda::Convert(attended.f32, rows, attended.n, attended.n, {.bf16 = attended.bf16},
                                run->stream));
    }
  }
  DeviceLinear(run, w.attn_output, attended, y);
}

void DeviceDeltaNet(CudaRun* run, const DeviceLayer& w, const DeviceLayerCache& cache,
                    const DeviceActivations& x, float* y) {
  const ScratchScope scope(run);
  const ModelConfig& config = run->config;
  const DeltaNetConfig& delta = config.delta_net;
  const int rows = run->rows, channels = delta.conv_channels(), heads = delta.num_value_heads;
  float* u = run->Take<float>(Product(rows, DeltaNetWidth(delta)));
  float* z = run->Take<float>(Product(rows, delta.inner_dim()));
  float* beta = run->Take<float>(Product(rows, heads));
  float* alpha = run->Take<float>(Product(rows, heads));
  DeviceLinears(
      run, x,
      {{&w.delta_qkv, u}, {&w.delta_gate, z}, {&w.delta_beta, beta}, {&w.delta_alpha, alpha}});

  const DeviceActivations gated = run->TakeInput(rows, w.delta_out);
  cuda::DeltaNetArgs args;
  args.sequences = static_cast<int>(run->sequences.size());
  args.rows = rows;
  args.row_offset = run->batch.row_offset;
  args.slot = run->batch.slots;
  args.k_heads = delta.num_key_heads;
  args.v_heads = heads;
  args.k_dim = delta.head_dim;
  args.v_dim = delta.head_dim;
  for (const auto& sequence : run->sequences) args.longest = std::max(args.longest, sequence.rows);
  args.position = run->batch.positions;
  args.u = u;
  args.conv_weight = w.delta_conv;
  args.conv_state = cache.conv;
  args.beta_logit = beta;
  args.alpha = alpha;
  args.dt_bias = w.delta_dt_bias;
  args.a = w.delta_a;
  args.state = cache.state;
  args.eps = config.rms_eps;
  if (run->decode() && delta.head_dim % 32 == 0) {
    LAUNCH(run,
           cuda::DeltaNetStep(
               args,
               {.z = z, .norm_weight = w.delta_norm, .arrived = run->arrived, .out = gated.out()},
               run->stream));
  } else {
    args.qkv = run->Take<float>(Product(rows, channels));
    args.out = run->Take<float>(Product(rows, delta.inner_dim()));
    LAUNCH(run, cuda::DeltaNet(args, run->stream));
    LAUNCH(run, cuda::GatedRmsNorm(args.out, z, w.delta_norm, config.rms_eps, rows, heads,
                                   delta.head_dim, gated.out(), run->stream));
  }
  DeviceLinear(run, w.delta_out, gated, y);
}

}  // namespace packtrain

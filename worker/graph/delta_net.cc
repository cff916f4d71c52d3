// A Gated DeltaNet layer.

#include "worker/ops/delta_net.h"

#include <algorithm>
#include <cmath>

#include "worker/graph/layers.h"
#include "worker/ops/vector_math.h"

namespace packtrain {
namespace {

constexpr size_t kConvChannels = 256;  // channels of one task

// The first row of each sequence.
std::vector<size_t> FirstRows(const RunContext& run) {
  std::vector<size_t> first;
  size_t row = 0;
  for (const UbatchSequence& sequence : run.sequences) {
    first.push_back(row);
    row += static_cast<size_t>(sequence.rows);
  }
  return first;
}

}  // namespace

void RunDeltaNet(RunContext* run, int layer, const LayerWeights& weights, const float* x,
                 float* y) {
  const ModelConfig& config = run->config;
  const DeltaNetConfig& delta = config.delta_net;
  const DeltaNetWeights& w = weights.delta_net;
  const VectorOps& ops = run->op.vector();
  const size_t rows = run->rows();
  const auto channels = static_cast<size_t>(delta.conv_channels());
  const auto dim = static_cast<size_t>(delta.head_dim);
  const auto key_heads = static_cast<size_t>(delta.num_key_heads);
  const auto value_heads = static_cast<size_t>(delta.num_value_heads);
  const size_t inner = value_heads * dim;

  run->x.Reset(x, rows, static_cast<size_t>(config.hidden_dim));
  float* u = run->q.Get(rows * channels);
  float* z = run->gate.Get(rows * inner);
  float* beta = run->q_lora.Get(rows * value_heads);
  float* alpha = run->kv.Get(rows * value_heads);
  LinearMany(run->op, {{w.qkv, u}, {w.gate, z}, {w.beta, beta}, {w.alpha, alpha}}, &run->x);

  run->times.Begin(OpKind::kDeltaNet);
  const std::vector<size_t> first_rows = FirstRows(*run);
  float* qkv = run->absorbed.Get(rows * channels);
  const size_t chunks = (channels + kConvChannels - 1) / kConvChannels;
  const size_t conv_work = rows * channels * 4 * kValueWork;
  run->op.ParallelFor(first_rows.size() * chunks, conv_work, [&](int task, int) {
    const size_t s = static_cast<size_t>(task) / chunks;
    const size_t first = static_cast<size_t>(task) % chunks * kConvChannels;
    const UbatchSequence& sequence = run->sequences[s];
    CausalConv(run->op.vector(), u + first_rows[s] * channels, static_cast<size_t>(sequence.rows),
               channels, static_cast<size_t>(delta.conv_kernel), w.conv_taps.data(), first,
               std::min(channels, first + kConvChannels), run->state->conv(sequence.slot, layer),
               qkv + first_rows[s] * channels);
  });
  const float q_scale = 1.0F / std::sqrt(static_cast<float>(dim));
  run->ForRows(2 * key_heads * dim, [&](size_t row, int) {
    for (size_t head = 0; head < 2 * key_heads; ++head) {
      float* vector = qkv + row * channels + head * dim;
      L2Normalise(vector, config.rms_eps, dim, vector);
      if (head < key_heads) Scale(vector, q_scale, dim);
    }
  });

  float* out = run->attended.Get(rows * inner);
  run->op.ParallelFor(first_rows.size() * value_heads, rows * inner * dim * 4, [&](int task, int) {
    const size_t s = static_cast<size_t>(task) / value_heads;
    const size_t head = static_cast<size_t>(task) % value_heads;
    const size_t key_head = head % key_heads;  // files hold value heads in this order
    const UbatchSequence& sequence = run->sequences[s];
    float* state = run->state->state(sequence.slot, layer) + head * dim * dim;
    for (size_t row = first_rows[s]; row < first_rows[s] + static_cast<size_t>(sequence.rows);
         ++row) {
      const float* q = qkv + row * channels + key_head * dim;
      const float* k = q + key_heads * dim;
      const float* v = qkv + row * channels + (2 * key_heads + head) * dim;
      const size_t i = row * value_heads + head;
      const float log_decay = w.a[head] * Softplus(alpha[i] + w.dt_bias[head]);
      float* o = out + i * dim;
      ops.delta_rule(q, k, v, log_decay, Sigmoid(beta[i]), dim, state, o);
      ops.rms_norm(o, w.norm.data(), config.rms_eps, dim, o);
      ops.swiglu(z + i * dim, o, dim, o);
    }
  });
  run->times.Begin(OpKind::kProjection);
  run->y.Reset(out, rows, inner);
  Linear(run->op, w.out, &run->y, y);
}

}  // namespace packtrain

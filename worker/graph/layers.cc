#include "worker/graph/layers.h"

#include "common/base/status_macros.h"
#include "worker/ops/vector_math.h"

namespace packtrain {

absl::Status DecoderLayer::Run(RunContext* run, float* hidden) {
  const ModelConfig& config = run->config;
  const auto dim = static_cast<size_t>(config.hidden_dim);
  const LayerConfig& kinds = config.layers[static_cast<size_t>(layer_)];
  float* normed = run->normed.Get(run->rows() * dim);
  float* out = run->layer_out.Get(run->rows() * dim);
  const auto norm = [&](const std::vector<float>& weight) {
    run->ForRows(dim, [&](size_t row, int) {
      run->op.vector().rms_norm(hidden + row * dim, weight.data(), config.rms_eps, dim,
                                normed + row * dim);
    });
  };
  const auto add = [&] {
    run->ForRows(dim, [&](size_t row, int) { Add(hidden + row * dim, out + row * dim, dim); });
  };

  run->times.Begin(OpKind::kNorm);
  norm(weights_.attn_norm);
  run->times.Begin(OpKind::kProjection);
  switch (kinds.attention) {
    case AttentionKind::kMla:
      RunMla(run, layer_, weights_, normed, out);
      break;
    case AttentionKind::kGqa:
      RunGqa(run, layer_, weights_, normed, out);
      break;
    case AttentionKind::kGatedDeltaNet:
      RunDeltaNet(run, layer_, weights_, normed, out);
      break;
  }
  run->times.Begin(OpKind::kNorm);
  add();

  norm(weights_.ffn_norm);
  if (kinds.ffn == FfnKind::kMoe) {
    RETURN_IF_ERROR(RunMoe(run, layer_, weights_.moe, normed, out));
  } else {
    run->times.Begin(OpKind::kFfn);
    run->x.Reset(normed, run->rows(), dim);
    RunFfn(run, weights_.dense, &run->x, out);
  }
  run->times.Begin(OpKind::kNorm);
  add();
  return absl::OkStatus();
}

}  // namespace packtrain

#include "worker/graph/layer_weights.h"

#include "absl/strings/str_format.h"
#include "common/quant/codec.h"
#include "common/weights/gguf.h"

namespace packtrain {

MatrixView WeightBinder::Matrix(TensorRole role, int layer) {
  const GgufTensor* tensor = tensors_.Find(role, layer);
  if (tensor == nullptr || !status_.ok()) return {};
  if (kernels_.weight(tensor->type) == nullptr) {
    status_ = absl::InvalidArgumentError(
        absl::StrFormat("tensor %s has type %s, which cannot be computed with", tensor->name,
                        TypeName(tensor->type)));
    return {};
  }
  const absl::StatusOr<std::span<const std::byte>> bytes = source_.Find(*tensor);
  if (!bytes.ok()) {
    status_ = bytes.status();
    return {};
  }
  bytes_ += bytes->size();
  return {.type = tensor->type,
          .rows = static_cast<size_t>(tensor->dim(1) * tensor->dim(2)),
          .cols = static_cast<size_t>(tensor->dim(0)),
          .data = bytes->data()};
}

std::vector<float> WeightBinder::Vector(TensorRole role, int layer) {
  const MatrixView view = Matrix(role, layer);
  std::vector<float> values(view.rows * view.cols);
  if (!view.empty()) Decode(view.type, view.data, values.size(), values.data());
  return values;
}

void WeightBinder::BindMla(int layer, LayerWeights* weights) {
  MlaWeights& mla = weights->mla;
  mla.q_a = Matrix(TensorRole::kQA, layer);
  mla.q_a_norm = Vector(TensorRole::kQANorm, layer);
  mla.q_b = Matrix(TensorRole::kQB, layer);
  mla.q_direct = Matrix(TensorRole::kQDirect, layer);
  mla.kv_a = Matrix(TensorRole::kKvA, layer);
  mla.kv_a_norm = Vector(TensorRole::kKvANorm, layer);
  mla.k_b = Matrix(TensorRole::kKB, layer);
  mla.v_b = Matrix(TensorRole::kVB, layer);
  IndexerWeights& indexer = weights->indexer;
  indexer.q_b = Matrix(TensorRole::kIndexerQB, layer);
  indexer.k = Matrix(TensorRole::kIndexerK, layer);
  indexer.proj = Matrix(TensorRole::kIndexerProj, layer);
  indexer.k_norm = Vector(TensorRole::kIndexerKNorm, layer);
  indexer.k_norm_bias = Vector(TensorRole::kIndexerKNormBias, layer);
}

void WeightBinder::BindGqa(int layer, GqaWeights* gqa) {
  const MatrixView fused = Matrix(TensorRole::kQkv, layer);
  if (fused.empty()) {
    gqa->q = Matrix(TensorRole::kQ, layer);
    gqa->k = Matrix(TensorRole::kK, layer);
    gqa->v = Matrix(TensorRole::kV, layer);
  } else {
    const auto q_rows = static_cast<size_t>(DimSize(Dim::kGqaQ, config_));
    const auto k_rows = static_cast<size_t>(DimSize(Dim::kGqaK, config_));
    gqa->q = fused.Rows(0, q_rows);
    gqa->k = fused.Rows(q_rows, k_rows);
    gqa->v = fused.Rows(q_rows + k_rows, fused.rows - q_rows - k_rows);
  }
  gqa->q_bias = Vector(TensorRole::kQBias, layer);
  gqa->k_bias = Vector(TensorRole::kKBias, layer);
  gqa->v_bias = Vector(TensorRole::kVBias, layer);
  gqa->q_norm = Vector(TensorRole::kQNorm, layer);
  gqa->k_norm = Vector(TensorRole::kKNorm, layer);
}

void WeightBinder::BindDeltaNet(int layer, DeltaNetWeights* delta) {
  delta->qkv = Matrix(TensorRole::kDeltaQkv, layer);
  delta->gate = Matrix(TensorRole::kDeltaGate, layer);
  delta->beta = Matrix(TensorRole::kDeltaBeta, layer);
  delta->alpha = Matrix(TensorRole::kDeltaAlpha, layer);
  delta->out = Matrix(TensorRole::kDeltaOut, layer);
  delta->conv = Vector(TensorRole::kDeltaConv, layer);
  const auto kernel = static_cast<size_t>(config_.delta_net.conv_kernel);
  const size_t channels = delta->conv.size() / kernel;
  delta->conv_taps.resize(delta->conv.size());
  for (size_t i = 0; i < delta->conv.size(); ++i) {
    delta->conv_taps[i % kernel * channels + i / kernel] = delta->conv[i];
  }
  delta->dt_bias = Vector(TensorRole::kDeltaDtBias, layer);
  delta->a = Vector(TensorRole::kDeltaA, layer);
  delta->norm = Vector(TensorRole::kDeltaNorm, layer);
}

void WeightBinder::BindMoe(int layer, MoeWeights* moe) {
  moe->router = Matrix(TensorRole::kRouter, layer);
  moe->router_bias = Vector(TensorRole::kRouterBias, layer);
  moe->shared.gate = Matrix(TensorRole::kSharedGate, layer);
  moe->shared.up = Matrix(TensorRole::kSharedUp, layer);
  moe->shared.down = Matrix(TensorRole::kSharedDown, layer);
  moe->shared_router = Vector(TensorRole::kSharedRouter, layer);
}

LayerWeights WeightBinder::Layer(int layer) {
  const LayerConfig& kinds = config_.layers[static_cast<size_t>(layer)];
  LayerWeights weights;
  weights.attn_norm = Vector(TensorRole::kAttnNorm, layer);
  weights.ffn_norm = Vector(TensorRole::kFfnNorm, layer);
  weights.attn_output = Matrix(TensorRole::kAttnOutput, layer);
  switch (kinds.attention) {
    case AttentionKind::kMla:
      BindMla(layer, &weights);
      break;
    case AttentionKind::kGqa:
      BindGqa(layer, &weights.gqa);
      break;
    case AttentionKind::kGatedDeltaNet:
      BindDeltaNet(layer, &weights.delta_net);
      break;
  }
  if (kinds.ffn == FfnKind::kMoe) {
    BindMoe(layer, &weights.moe);
  } else {
    weights.dense.gate = Matrix(TensorRole::kFfnGate, layer);
    weights.dense.up = Matrix(TensorRole::kFfnUp, layer);
    weights.dense.down = Matrix(TensorRole::kFfnDown, layer);
  }
  return weights;
}

ExpertWeights WeightBinder::Experts(int layer) {
  ExpertWeights experts;
  experts.num_experts = static_cast<size_t>(config_.moe.num_experts);
  experts.expert_dim = static_cast<size_t>(config_.moe.expert_dim);
  experts.down = Matrix(TensorRole::kExpertsDown, layer);
  const MatrixView fused = Matrix(TensorRole::kExpertsGateUp, layer);
  if (fused.empty()) {
    experts.gate = Matrix(TensorRole::kExpertsGate, layer);
    experts.up = Matrix(TensorRole::kExpertsUp, layer);
    experts.row_stride = experts.expert_dim;
  } else {
    experts.gate = fused.Rows(0, fused.rows - experts.expert_dim);
    experts.up = fused.Rows(experts.expert_dim, fused.rows - experts.expert_dim);
    experts.row_stride = 2 * experts.expert_dim;
  }
  return experts;
}

}  // namespace packtrain

#include "coordinator/placement/layer_times.h"

#include <algorithm>

#include "coordinator/placement/rates.h"
#include "coordinator/placement/work.h"

namespace packtrain {
namespace {

const LayerWeightBytes& WeightsOf(const Problem& problem, int layer) {
  return problem.model->weights.layers[static_cast<size_t>(layer)];
}

const LayerConfig& ConfigOf(const Problem& problem, int layer) {
  return problem.model->config.layers[static_cast<size_t>(layer)];
}

// Kernels that a layer adds to a decode step behind `depth` positions.
int KernelsOf(const ModelConfig& config, const LayerConfig& layer, int depth) {
  int kernels = kDenseKernels;
  if (layer.ffn == FfnKind::kMoe) {
    kernels = kMoeKernels + (config.moe.shared_dim > 0 ? kSharedKernels : 0);
  }
  switch (layer.attention) {
    case AttentionKind::kMla:
      kernels += kMlaKernels;
      if (layer.indexer != IndexerKind::kFull) break;
      kernels += kIndexerKernels + (depth >= config.indexer.top_k ? kSelectionKernels : 0);
      break;
    case AttentionKind::kGqa:
      kernels += kGqaKernels;
      break;
    case AttentionKind::kGatedDeltaNet:
      kernels += kDeltaNetKernels;
      break;
  }
  return kernels;
}

double AttentionShare(const StageCandidate& stage, AttentionKind kind) {
  if (stage.kind != DeviceKind::kCuda) return 1;
  switch (kind) {
    case AttentionKind::kMla:
      return kMlaShare;
    case AttentionKind::kGqa:
      return kGqaShare;
    case AttentionKind::kGatedDeltaNet:
      return kDeltaNetShare;
  }
  return 1;
}

// Reading the cache in a decode step, and the products of attention meanwhile.
double DecodeAttentionSeconds(const Problem& problem, const StageCandidate& stage, int layer,
                              int depth) {
  const ModelConfig& c = problem.model->config;
  const double reading = CacheReadBytes(c, problem.wish->kv_cache, layer, depth) / stage.read;
  const AttentionKind kind = ConfigOf(problem, layer).attention;
  if (stage.kind != DeviceKind::kCuda || kind == AttentionKind::kGatedDeltaNet) return reading;
  const double share = kind == AttentionKind::kMla ? kMlaDecodeShare : kGqaDecodeShare;
  return std::max(reading, AttentionFlops(c, layer, depth) / (stage.f32_flops * share));
}

double SharedExpertSeconds(const Problem& problem, const StageCandidate& stage, int layer) {
  const LayerWeightBytes& w = WeightsOf(problem, layer);
  return w.experts > 0 ? stage.weights.Read(static_cast<double>(w.shared_expert), w.types) : 0;
}

// Bytes of a layer's experts that one token picks.
double PickedBytes(const Problem& problem, int layer) {
  const MoeConfig& moe = problem.model->config.moe;
  if (moe.num_experts == 0) return 0;
  return static_cast<double>(WeightsOf(problem, layer).experts) * moe.top_k / moe.num_experts;
}

// Of asking an experts worker for one layer, and of its answer.
double ExchangeSeconds(const Problem& problem, const StageCandidate& stage,
                       const ExpertsCandidate& experts) {
  const double bytes = 2.0 * problem.model->config.hidden_dim * 4;
  double seconds =
      stage.exchange_seconds + (stage.kind == DeviceKind::kCuda ? bytes / stage.link : 0);
  if (stage.host != experts.host) {
    const NetworkFacts net = problem.rig->Network(stage.name.host, experts.name.host);
    seconds += net.round_trip_us * 1e-6 + kGrpcSeconds + bytes / (net.gb_per_s * 1e9);
  }
  return seconds;
}

}  // namespace

double OwnDecodeSeconds(const Problem& problem, const StageCandidate& stage, int layer, int depth) {
  const LayerWeightBytes& w = WeightsOf(problem, layer);
  const double bytes = static_cast<double>(w.attention + w.indexer + w.feed_forward) -
                       (w.experts > 0 ? static_cast<double>(w.shared_expert) : 0);
  const double besides =
      stage.kind == DeviceKind::kCuda
          ? stage.kernel_seconds * KernelsOf(problem.model->config, ConfigOf(problem, layer), depth)
          : kCpuLayerSeconds;
  return stage.weights.Read(bytes, w.types) + DecodeAttentionSeconds(problem, stage, layer, depth) +
         besides;
}

double ResidentDecodeSeconds(const Problem& problem, const StageCandidate& stage, int layer) {
  const double picked = PickedBytes(problem, layer);
  const double routed = picked > 0
                            ? stage.experts.Read(picked, WeightsOf(problem, layer).expert_types) +
                                  stage.experts_seconds
                            : 0;
  return SharedExpertSeconds(problem, stage, layer) + routed;
}

double RemoteDecodeSeconds(const Problem& problem, const StageCandidate& stage,
                           const ExpertsCandidate& experts, int layer) {
  const double picked = PickedBytes(problem, layer);
  const double away = picked > 0
                          ? experts.weights.Read(picked, WeightsOf(problem, layer).expert_types) +
                                experts.layer_seconds + ExchangeSeconds(problem, stage, experts)
                          : 0;
  const double shared = SharedExpertSeconds(problem, stage, layer);
  // A CPU stage and the experts worker share the cores and the DRAM.
  return stage.kind == DeviceKind::kCpu ? away + shared : std::max(away, shared);
}

double OwnPrefillSeconds(const Problem& problem, const StageCandidate& stage, int layer,
                         const PromptChunk& chunk) {
  const ModelConfig& c = problem.model->config;
  const LayerWeightBytes& w = WeightsOf(problem, layer);
  const double rows = chunk.rows;
  const double attention =
      rows * AttentionFlops(c, layer, chunk.depth + rows / 2) /
      (stage.attention_flops * AttentionShare(stage, ConfigOf(problem, layer).attention));
  const double between = stage.kind == DeviceKind::kCuda
                             ? rows * kActivationPasses * c.hidden_dim * 4 / stage.read
                             : 0;
  return stage.weights.Multiply(static_cast<double>(w.parameters), rows,
                                static_cast<double>(w.attention + w.indexer + w.feed_forward),
                                w.types) +
         attention + between;
}

double ExpertsPrefillSeconds(const Problem& problem, const WeightTimes& weights, int layer,
                             int rows) {
  const ModelConfig& c = problem.model->config;
  const LayerWeightBytes& w = WeightsOf(problem, layer);
  if (w.experts == 0) return 0;
  return weights.Multiply(static_cast<double>(w.expert_parameters),
                          static_cast<double>(rows) * c.moe.top_k / std::max(c.moe.num_experts, 1),
                          static_cast<double>(w.experts) * TouchedShare(c, rows), w.expert_types);
}

}  // namespace packtrain

#include "coordinator/placement/layer_times.h"

#include <algorithm>
#include <cmath>

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

// What a layer adds to a decode step besides its bytes, in kernels.
double KernelsOf(const ModelConfig& config, const LayerConfig& layer, int depth) {
  // One multiprocessor normalises a row.
  double kernels = 2 * config.hidden_dim / kNormValues;
  if (layer.ffn == FfnKind::kMoe) {
    kernels += kMoeKernels + (config.moe.shared_dim > 0 ? kSharedKernels : 0);
  } else {
    kernels += kDenseKernels;
  }
  const auto attend = [&](int values) {
    return kAttendKernels + values / kAttendValues +
           values / kPartValues * std::min(1.0, static_cast<double>(depth) / kPartedPositions);
  };
  switch (layer.attention) {
    case AttentionKind::kMla:
      kernels += kMlaKernels + attend(config.mla.kv_lora_rank);
      if (layer.indexer != IndexerKind::kFull) break;
      kernels += kIndexerKernels + (depth >= config.indexer.top_k ? kSelectionKernels : 0);
      break;
    case AttentionKind::kGqa:
      kernels += kGqaKernels + attend(config.gqa.value_dim);
      break;
    case AttentionKind::kGatedDeltaNet:
      kernels += kDeltaNetKernels;
      break;
  }
  return kernels;
}

// Walking the cache in a decode step: as long as reading it takes, or as positions take that are
// computed one behind the other.
double WalkSeconds(const Problem& problem, const StageCandidate& stage, int layer, int depth) {
  const ModelConfig& c = problem.model->config;
  const double reading = CacheReadBytes(c, problem.wish->kv_cache, layer, depth) / stage.read;
  const LayerConfig& kind = ConfigOf(problem, layer);
  if (stage.kind != DeviceKind::kCuda || kind.attention == AttentionKind::kGatedDeltaNet) {
    return reading;
  }
  // The token itself is there too, unless it is one of the best.
  const int walked =
      kind.indexer == IndexerKind::kNone ? depth + 1 : std::min(depth + 1, c.indexer.top_k);
  const int rounds = (walked + kPartedPositions - 1) / kPartedPositions;
  return std::max(reading, rounds * stage.kernel_seconds * kPartedKernels);
}

double SharedExpertSeconds(const Problem& problem, const StageCandidate& stage, int layer) {
  const LayerWeightBytes& w = WeightsOf(problem, layer);
  return w.experts > 0 ? stage.weights.Read(static_cast<double>(w.shared_expert), w.types) : 0;
}

// Of a layer's experts, the part that is gate and up matrices: by their types, else two thirds.
double GateUpPart(const LayerWeightBytes& weights) {
  const auto sum = [](const std::vector<TypeBytes>& types) {
    double bytes = 0;
    for (const TypeBytes& part : types) bytes += static_cast<double>(part.bytes);
    return bytes;
  };
  const double gate_up = sum(weights.expert_types), down = sum(weights.expert_down_types);
  return gate_up + down > 0 ? gate_up / (gate_up + down) : 2.0 / 3;
}

// Reading those of a layer's experts that one token picks.
double PickedSeconds(const Problem& problem, const ExpertTimes& experts, int layer) {
  const MoeConfig& moe = problem.model->config.moe;
  const LayerWeightBytes& w = WeightsOf(problem, layer);
  if (moe.num_experts == 0 || w.experts == 0) return 0;
  const double picked = static_cast<double>(w.experts) * moe.top_k / moe.num_experts;
  const double gate_up = GateUpPart(w);
  return experts.gate_up.Read(picked * gate_up, w.expert_types) +
         experts.down.Read(picked * (1 - gate_up), w.expert_down_types);
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

// Attention of a chunk of a prompt on a GPU.
double AttendSeconds(const Problem& problem, const StageCandidate& stage, int layer,
                     const PromptChunk& chunk) {
  const ModelConfig& c = problem.model->config;
  const double rows = chunk.rows;
  if (ConfigOf(problem, layer).attention == AttentionKind::kGatedDeltaNet) {
    return rows * AttentionFlops(c, layer, 0) / (stage.attention_flops * kDeltaNetShare);
  }
  const auto work = [&](double visible) {
    return AttentionFlops(c, layer, visible) + kScoreFlops * AttentionScores(c, layer, visible);
  };
  // At its end multiprocessors wait for the rows that are computed last, which see most.
  const double last = std::min(rows, stage.attention_rows / std::max(c.num_heads, 1));
  return (rows * work(chunk.depth + rows / 2) + kLastRows * last * work(chunk.depth + rows)) /
         stage.attention_flops;
}

// All that a GPU does between the products of a chunk.
double BetweenSeconds(const Problem& problem, const StageCandidate& stage, int layer, double rows) {
  return rows * BetweenBytes(problem.model->config, layer) / (stage.read * kBetweenShare) +
         kUbatchLayerSeconds;
}

}  // namespace

double OwnDecodeSeconds(const Problem& problem, const StageCandidate& stage, int layer, int depth) {
  const LayerWeightBytes& w = WeightsOf(problem, layer);
  const double bytes = static_cast<double>(w.attention + w.indexer + w.feed_forward) -
                       (w.experts > 0 ? static_cast<double>(w.shared_expert) : 0);
  const double walk = WalkSeconds(problem, stage, layer, depth);
  if (stage.kind != DeviceKind::kCuda) {
    return stage.weights.Read(bytes, w.types) + walk + kCpuLayerSeconds;
  }
  // gate and up of a dense layer are read by the kernel that reads those of picked experts.
  const double gate_up = w.experts == 0 ? static_cast<double>(w.feed_forward) * 2 / 3 : 0;
  return kGraphGaps *
         (stage.weights.Read(bytes - gate_up, w.types) +
          stage.experts.gate_up.Read(gate_up, w.types) + walk +
          stage.kernel_seconds * KernelsOf(problem.model->config, ConfigOf(problem, layer), depth));
}

double ResidentDecodeSeconds(const Problem& problem, const StageCandidate& stage, int layer) {
  const double picked = PickedSeconds(problem, stage.experts, layer);
  return (stage.kind == DeviceKind::kCuda ? kGraphGaps : 1) *
         (SharedExpertSeconds(problem, stage, layer) +
          (picked > 0 ? picked + stage.experts_seconds : 0));
}

double RemoteDecodeSeconds(const Problem& problem, const StageCandidate& stage,
                           const ExpertsCandidate& experts, int layer) {
  const double picked = PickedSeconds(problem, experts.experts, layer);
  const double away =
      picked > 0 ? picked + experts.layer_seconds + ExchangeSeconds(problem, stage, experts) : 0;
  const double shared = SharedExpertSeconds(problem, stage, layer);
  // A CPU stage and the experts worker share the cores and the DRAM.
  return stage.kind == DeviceKind::kCpu ? away + shared : std::max(away, shared);
}

double OwnPrefillSeconds(const Problem& problem, const StageCandidate& stage, int layer,
                         const PromptChunk& chunk) {
  const ModelConfig& c = problem.model->config;
  const LayerWeightBytes& w = WeightsOf(problem, layer);
  const double rows = chunk.rows;
  const double products = stage.weights.Multiply(
      static_cast<double>(w.parameters), rows,
      static_cast<double>(w.attention + w.indexer + w.feed_forward), w.types);
  if (stage.kind == DeviceKind::kCpu) {
    return products +
           rows * AttentionFlops(c, layer, chunk.depth + rows / 2) / stage.attention_flops;
  }
  return products + AttendSeconds(problem, stage, layer, chunk) +
         BetweenSeconds(problem, stage, layer, rows);
}

double ExpertsPrefillSeconds(const Problem& problem, const ExpertTimes& experts, int layer,
                             int rows) {
  const MoeConfig& moe = problem.model->config.moe;
  const LayerWeightBytes& w = WeightsOf(problem, layer);
  if (w.experts == 0) return 0;
  const double parameters = static_cast<double>(w.expert_parameters);
  const double tokens = static_cast<double>(rows) * moe.top_k / std::max(moe.num_experts, 1);
  const double touched = static_cast<double>(w.experts) * TouchedShare(problem.model->config, rows);
  const double gate_up = GateUpPart(w);
  // How much longer the rounds take than their tiles, for the last one is seldom full.
  const auto rounds = [&](int matrix_rows) {
    if (experts.tiles_at_once <= 0) return 1.0;
    const double tiles = moe.num_experts * TouchedShare(problem.model->config, rows) *
                         std::ceil(matrix_rows / kTileRows) *
                         std::max(tokens / kTileTokens + 0.5, 1.0);
    return std::ceil(tiles / experts.tiles_at_once) / (tiles / experts.tiles_at_once);
  };
  return experts.gate_up.Multiply(parameters * 2 / 3, tokens, touched * gate_up, w.expert_types) *
             rounds(moe.expert_dim) +
         experts.down.Multiply(parameters / 3, tokens, touched * (1 - gate_up),
                               w.expert_down_types) *
             rounds(problem.model->config.hidden_dim);
}

}  // namespace packtrain

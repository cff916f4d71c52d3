#pragma once

// The vocabulary in which an architecture is described: one constexpr ArchDescription per file of
// this folder, one row in all.cc.

#include <cstdint>
#include <span>
#include <string_view>

#include "common/model/config.h"

namespace packtrain {

enum class TensorRole : uint8_t {
  kTokenEmbd,
  kOutputNorm,
  kOutput,
  kAttnNorm,
  kAttnOutput,
  // Multi-head latent attention
  kQA,
  kQANorm,
  kQB,
  kQDirect,
  kKvA,
  kKvANorm,
  kKB,
  kVB,
  kIndexerQB,
  kIndexerK,
  kIndexerKNorm,
  kIndexerKNormBias,
  kIndexerProj,
  // Grouped-query attention
  kQ,
  kK,
  kV,
  kQkv,
  kQBias,
  kKBias,
  kVBias,
  kQNorm,
  kKNorm,
  // Gated DeltaNet
  kDeltaQkv,
  kDeltaGate,
  kDeltaConv,
  kDeltaDtBias,
  kDeltaA,
  kDeltaBeta,
  kDeltaAlpha,
  kDeltaNorm,
  kDeltaOut,
  // Feed-forward
  kFfnNorm,
  kFfnGate,
  kFfnUp,
  kFfnDown,
  kRouter,
  kRouterBias,
  kExpertsGate,
  kExpertsUp,
  kExpertsGateUp,
  kExpertsDown,
  kSharedRouter,
  kSharedGate,
  kSharedUp,
  kSharedDown,
  // Multi-token prediction
  kMtpProj,
  kMtpEmbdNorm,
  kMtpHiddenNorm,
  kMtpHeadNorm,
  kMtpEmbd,
  kMtpHead,
  kNone,
};

// Routed experts: what an experts worker holds.
constexpr bool IsRoutedExpert(TensorRole role) {
  return role == TensorRole::kExpertsGate || role == TensorRole::kExpertsUp ||
         role == TensorRole::kExpertsGateUp || role == TensorRole::kExpertsDown;
}

// A size in terms of the configuration.
enum class Dim : uint8_t {
  kNone,
  kHidden,
  kTwoHidden,
  kVocab,
  kHeads,
  kQLora,
  kKvLora,
  kKvLoraRope,
  kMlaQ,
  kNope,
  kMlaValue,
  kMlaOut,
  kIndexerQ,
  kIndexerDim,
  kIndexerHeads,
  kGqaQ,
  kGqaK,
  kGqaV,
  kGqaQkv,
  kGqaOut,
  kKeyDim,
  kConvKernel,
  kConvChannels,
  kDeltaInner,
  kDeltaHeads,
  kDeltaDim,
  kDenseFfn,
  kExperts,
  kExpertFfn,
  kTwoExpertFfn,
  kSharedFfn,
};

uint64_t DimSize(Dim dim, const ModelConfig& config);

// The layers that a tensor belongs to.
enum class Where : uint8_t {
  kGlobal,
  kEveryLayer,
  kAttention,  // not the Gated DeltaNet layers
  kQLora,
  kNoQLora,
  kGatedDeltaNet,
  kFullIndexer,
  kDense,
  kMoe,
  kSharedExpert,
  kMtp,
};

struct TensorRule {
  std::string_view name;  // behind "blk.<layer>." unless global
  TensorRole role = TensorRole::kNone;
  Where where = Where::kEveryLayer;
  Dim dims[3] = {Dim::kNone, Dim::kNone, Dim::kNone};  // as stored: dims[0] is the row length
  bool optional = false;
  TensorRole replaced_by = TensorRole::kNone;  // not needed where the layer has this one
};

enum class IndexerRule : uint8_t { kNone, kEveryLayer, kFromMetadata };
enum class SharedExpertRule : uint8_t { kNone, kCount, kGatedWidth };
// kSoftmaxNormed: fixed by the family, keys are not asked. Else keys decide, and the rule says what
// holds where expert_gating_func is absent.
enum class RouterRule : uint8_t { kSoftmaxNormed, kDefaultSoftmax, kDefaultSigmoid, kRequired };

struct ArchDescription {
  std::string_view name;  // general.architecture
  AttentionKind attention = AttentionKind::kGqa;
  bool has_delta_net = false;  // most layers are Gated DeltaNet instead
  bool output_gate = false;
  RopeKind rope = RopeKind::kNeox;
  bool allows_yarn = false;
  IndexerRule indexer = IndexerRule::kNone;
  RopeKind indexer_rope = RopeKind::kNorm;
  RouterRule router = RouterRule::kSoftmaxNormed;
  SharedExpertRule shared_expert = SharedExpertRule::kNone;
  bool has_dense_lead = false;
  std::span<const std::span<const TensorRule>> tensors;
};

std::span<const ArchDescription* const> AllArchitectures();
const ArchDescription* FindArchitecture(std::string_view name);  // nullptr if there is none

}  // namespace packtrain

// GLM-5, 5.1, 5.2: latent attention with a sparse indexer, some layers sharing its choice.

#include "common/model/arch/all.h"
#include "common/model/arch/tensor_groups.h"

namespace packtrain::arch {
namespace {

constexpr std::span<const TensorRule> kTensors[] = {kGlobalTensors, kMlaTensors, kIndexerTensors,
                                                    kDenseTensors,  kMoeTensors, kRouterBiasTensors,
                                                    kMtpTensors};

}  // namespace

constexpr ArchDescription kGlmDsa = {
    .name = "glm-dsa",
    .attention = AttentionKind::kMla,
    .rope = RopeKind::kNorm,
    .allows_yarn = true,
    .indexer = IndexerRule::kFromMetadata,
    .indexer_rope = RopeKind::kNorm,
    .router = RouterRule::kDefaultSigmoid,
    .shared_expert = SharedExpertRule::kCount,
    .has_dense_lead = true,
    .tensors = kTensors,
};

}  // namespace packtrain::arch

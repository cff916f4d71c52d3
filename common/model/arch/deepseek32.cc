// DeepSeek V3.2: as deepseek2 with an indexer in every layer.

#include "common/model/arch/all.h"
#include "common/model/arch/tensor_groups.h"

namespace packtrain::arch {
namespace {

constexpr std::span<const TensorRule> kTensors[] = {kGlobalTensors, kMlaTensors, kIndexerTensors,
                                                    kDenseTensors,  kMoeTensors, kRouterBiasTensors,
                                                    kMtpTensors};

}  // namespace

constexpr ArchDescription kDeepseek32 = {
    .name = "deepseek32",
    .attention = AttentionKind::kMla,
    .rope = RopeKind::kNorm,
    .allows_yarn = true,
    .indexer = IndexerRule::kEveryLayer,
    .indexer_rope = RopeKind::kNeox,
    .router = RouterRule::kRequired,
    .shared_expert = SharedExpertRule::kCount,
    .has_dense_lead = true,
    .tensors = kTensors,
};

}  // namespace packtrain::arch

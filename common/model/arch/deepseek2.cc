// DeepSeek V2, V3, R1: latent attention, grouped routing.

#include "common/model/arch/all.h"
#include "common/model/arch/tensor_groups.h"

namespace packtrain::arch {
namespace {

constexpr std::span<const TensorRule> kTensors[] = {
    kGlobalTensors, kMlaTensors, kDenseTensors, kMoeTensors, kRouterBiasTensors, kMtpTensors};

}  // namespace

constexpr ArchDescription kDeepseek2 = {
    .name = "deepseek2",
    .attention = AttentionKind::kMla,
    .rope = RopeKind::kNorm,
    .allows_yarn = true,
    .router = RouterRule::kDefaultSoftmax,
    .shared_expert = SharedExpertRule::kCount,
    .has_dense_lead = true,
    .tensors = kTensors,
};

}  // namespace packtrain::arch

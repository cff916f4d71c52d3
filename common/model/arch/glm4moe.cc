// GLM-4.5, 4.6, 4.7: grouped-query attention with biases and half-rotated heads.

#include "common/model/arch/all.h"
#include "common/model/arch/tensor_groups.h"

namespace packtrain::arch {
namespace {

constexpr TensorRule kOwnTensors[] = {
    {"post_attention_norm.weight", TensorRole::kFfnNorm, Where::kEveryLayer, {Dim::kHidden}},
    {"attn_q_norm.weight", TensorRole::kQNorm, Where::kAttention, {Dim::kKeyDim}, true},
    {"attn_k_norm.weight", TensorRole::kKNorm, Where::kAttention, {Dim::kKeyDim}, true},
    {"exp_probs_b.bias", TensorRole::kRouterBias, Where::kMoe, {Dim::kExperts}},
};

constexpr std::span<const TensorRule> kTensors[] = {kGlobalTensors, kGqaTensors, kOwnTensors,
                                                    kDenseTensors,  kMoeTensors, kMtpTensors};

}  // namespace

constexpr ArchDescription kGlm4moe = {
    .name = "glm4moe",
    .attention = AttentionKind::kGqa,
    .rope = RopeKind::kNeox,
    .router = RouterRule::kDefaultSigmoid,
    .shared_expert = SharedExpertRule::kCount,
    .has_dense_lead = true,
    .tensors = kTensors,
};

}  // namespace packtrain::arch

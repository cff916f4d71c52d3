// Qwen3 MoE: grouped-query attention, every layer routed, no shared expert.

#include "common/model/arch/all.h"
#include "common/model/arch/tensor_groups.h"

namespace packtrain::arch {
namespace {

constexpr TensorRule kOwnTensors[] = {
    {"ffn_norm.weight", TensorRole::kFfnNorm, Where::kEveryLayer, {Dim::kHidden}},
};

constexpr std::span<const TensorRule> kTensors[] = {kGlobalTensors, kGqaTensors, kQkNormTensors,
                                                    kOwnTensors, kMoeTensors};

}  // namespace

constexpr ArchDescription kQwen3moe = {
    .name = "qwen3moe",
    .attention = AttentionKind::kGqa,
    .rope = RopeKind::kNeox,
    .router = RouterRule::kSoftmaxNormed,
    .tensors = kTensors,
};

}  // namespace packtrain::arch

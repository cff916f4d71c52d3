// Qwen3.5 and 3.6 MoE: Gated DeltaNet layers, every fourth with gated full attention.

#include "common/model/arch/all.h"
#include "common/model/arch/tensor_groups.h"

namespace packtrain::arch {
namespace {

constexpr TensorRule kOwnTensors[] = {
    {"post_attention_norm.weight", TensorRole::kFfnNorm, Where::kEveryLayer, {Dim::kHidden}},
    // Rows of queries, keys, values.
    {"attn_qkv.weight",
     TensorRole::kDeltaQkv,
     Where::kGatedDeltaNet,
     {Dim::kHidden, Dim::kConvChannels}},
    {"attn_gate.weight",
     TensorRole::kDeltaGate,
     Where::kGatedDeltaNet,
     {Dim::kHidden, Dim::kDeltaInner}},
    {"ssm_conv1d.weight",
     TensorRole::kDeltaConv,
     Where::kGatedDeltaNet,
     {Dim::kConvKernel, Dim::kConvChannels}},
    {"ssm_dt.bias", TensorRole::kDeltaDtBias, Where::kGatedDeltaNet, {Dim::kDeltaHeads}},
    {"ssm_a", TensorRole::kDeltaA, Where::kGatedDeltaNet, {Dim::kDeltaHeads}},
    {"ssm_beta.weight",
     TensorRole::kDeltaBeta,
     Where::kGatedDeltaNet,
     {Dim::kHidden, Dim::kDeltaHeads}},
    {"ssm_alpha.weight",
     TensorRole::kDeltaAlpha,
     Where::kGatedDeltaNet,
     {Dim::kHidden, Dim::kDeltaHeads}},
    {"ssm_norm.weight", TensorRole::kDeltaNorm, Where::kGatedDeltaNet, {Dim::kDeltaDim}},
    {"ssm_out.weight",
     TensorRole::kDeltaOut,
     Where::kGatedDeltaNet,
     {Dim::kDeltaInner, Dim::kHidden}},
    {"ffn_gate_inp_shexp.weight", TensorRole::kSharedRouter, Where::kSharedExpert, {Dim::kHidden}},
};

constexpr std::span<const TensorRule> kTensors[] = {kGlobalTensors, kGqaTensors, kQkNormTensors,
                                                    kOwnTensors,    kMoeTensors, kMtpTensors};

}  // namespace

constexpr ArchDescription kQwen35moe = {
    .name = "qwen35moe",
    .attention = AttentionKind::kGqa,
    .has_delta_net = true,
    .output_gate = true,
    .rope = RopeKind::kNeox,
    .router = RouterRule::kSoftmaxNormed,
    .shared_expert = SharedExpertRule::kGatedWidth,
    .tensors = kTensors,
};

}  // namespace packtrain::arch

#pragma once

// Groups of tensors that several architectures have in common.

#include "common/model/arch/description.h"

namespace packtrain::arch {

inline constexpr TensorRule kGlobalTensors[] = {
    {"token_embd.weight", TensorRole::kTokenEmbd, Where::kGlobal, {Dim::kHidden, Dim::kVocab}},
    {"output_norm.weight", TensorRole::kOutputNorm, Where::kGlobal, {Dim::kHidden}},
    // Absent: the embedding serves as head too.
    {"output.weight", TensorRole::kOutput, Where::kGlobal, {Dim::kHidden, Dim::kVocab}, true},
};

inline constexpr TensorRule kMlaTensors[] = {
    {"attn_norm.weight", TensorRole::kAttnNorm, Where::kEveryLayer, {Dim::kHidden}},
    {"attn_q_a.weight", TensorRole::kQA, Where::kQLora, {Dim::kHidden, Dim::kQLora}},
    {"attn_q_a_norm.weight", TensorRole::kQANorm, Where::kQLora, {Dim::kQLora}},
    {"attn_q_b.weight", TensorRole::kQB, Where::kQLora, {Dim::kQLora, Dim::kMlaQ}},
    {"attn_q.weight", TensorRole::kQDirect, Where::kNoQLora, {Dim::kHidden, Dim::kMlaQ}},
    {"attn_kv_a_mqa.weight",
     TensorRole::kKvA,
     Where::kEveryLayer,
     {Dim::kHidden, Dim::kKvLoraRope}},
    {"attn_kv_a_norm.weight", TensorRole::kKvANorm, Where::kEveryLayer, {Dim::kKvLora}},
    {"attn_k_b.weight",
     TensorRole::kKB,
     Where::kEveryLayer,
     {Dim::kNope, Dim::kKvLora, Dim::kHeads}},
    {"attn_v_b.weight",
     TensorRole::kVB,
     Where::kEveryLayer,
     {Dim::kKvLora, Dim::kMlaValue, Dim::kHeads}},
    {"attn_output.weight",
     TensorRole::kAttnOutput,
     Where::kEveryLayer,
     {Dim::kMlaOut, Dim::kHidden}},
    {"ffn_norm.weight", TensorRole::kFfnNorm, Where::kEveryLayer, {Dim::kHidden}},
};

inline constexpr TensorRule kIndexerTensors[] = {
    {"indexer.attn_q_b.weight",
     TensorRole::kIndexerQB,
     Where::kFullIndexer,
     {Dim::kQLora, Dim::kIndexerQ}},
    {"indexer.attn_k.weight",
     TensorRole::kIndexerK,
     Where::kFullIndexer,
     {Dim::kHidden, Dim::kIndexerDim}},
    {"indexer.k_norm.weight", TensorRole::kIndexerKNorm, Where::kFullIndexer, {Dim::kIndexerDim}},
    {"indexer.k_norm.bias", TensorRole::kIndexerKNormBias, Where::kFullIndexer, {Dim::kIndexerDim}},
    {"indexer.proj.weight",
     TensorRole::kIndexerProj,
     Where::kFullIndexer,
     {Dim::kHidden, Dim::kIndexerHeads}},
};

inline constexpr TensorRule kGqaTensors[] = {
    {"attn_norm.weight", TensorRole::kAttnNorm, Where::kEveryLayer, {Dim::kHidden}},
    {"attn_q.weight",
     TensorRole::kQ,
     Where::kAttention,
     {Dim::kHidden, Dim::kGqaQ},
     false,
     TensorRole::kQkv},
    {"attn_k.weight",
     TensorRole::kK,
     Where::kAttention,
     {Dim::kHidden, Dim::kGqaK},
     false,
     TensorRole::kQkv},
    {"attn_v.weight",
     TensorRole::kV,
     Where::kAttention,
     {Dim::kHidden, Dim::kGqaV},
     false,
     TensorRole::kQkv},
    // Rows of queries, keys, values.
    {"attn_qkv.weight", TensorRole::kQkv, Where::kAttention, {Dim::kHidden, Dim::kGqaQkv}, true},
    {"attn_q.bias", TensorRole::kQBias, Where::kAttention, {Dim::kGqaQ}, true},
    {"attn_k.bias", TensorRole::kKBias, Where::kAttention, {Dim::kGqaK}, true},
    {"attn_v.bias", TensorRole::kVBias, Where::kAttention, {Dim::kGqaV}, true},
    {"attn_output.weight",
     TensorRole::kAttnOutput,
     Where::kAttention,
     {Dim::kGqaOut, Dim::kHidden}},
};

inline constexpr TensorRule kQkNormTensors[] = {
    {"attn_q_norm.weight", TensorRole::kQNorm, Where::kAttention, {Dim::kKeyDim}},
    {"attn_k_norm.weight", TensorRole::kKNorm, Where::kAttention, {Dim::kKeyDim}},
};

inline constexpr TensorRule kDenseTensors[] = {
    {"ffn_gate.weight", TensorRole::kFfnGate, Where::kDense, {Dim::kHidden, Dim::kDenseFfn}},
    {"ffn_up.weight", TensorRole::kFfnUp, Where::kDense, {Dim::kHidden, Dim::kDenseFfn}},
    {"ffn_down.weight", TensorRole::kFfnDown, Where::kDense, {Dim::kDenseFfn, Dim::kHidden}},
};

inline constexpr TensorRule kMoeTensors[] = {
    {"ffn_gate_inp.weight", TensorRole::kRouter, Where::kMoe, {Dim::kHidden, Dim::kExperts}},
    {"ffn_gate_exps.weight",
     TensorRole::kExpertsGate,
     Where::kMoe,
     {Dim::kHidden, Dim::kExpertFfn, Dim::kExperts},
     false,
     TensorRole::kExpertsGateUp},
    {"ffn_up_exps.weight",
     TensorRole::kExpertsUp,
     Where::kMoe,
     {Dim::kHidden, Dim::kExpertFfn, Dim::kExperts},
     false,
     TensorRole::kExpertsGateUp},
    // Of each expert the rows of gate, then those of up.
    {"ffn_gate_up_exps.weight",
     TensorRole::kExpertsGateUp,
     Where::kMoe,
     {Dim::kHidden, Dim::kTwoExpertFfn, Dim::kExperts},
     true},
    {"ffn_down_exps.weight",
     TensorRole::kExpertsDown,
     Where::kMoe,
     {Dim::kExpertFfn, Dim::kHidden, Dim::kExperts}},
    {"ffn_gate_shexp.weight",
     TensorRole::kSharedGate,
     Where::kSharedExpert,
     {Dim::kHidden, Dim::kSharedFfn}},
    {"ffn_up_shexp.weight",
     TensorRole::kSharedUp,
     Where::kSharedExpert,
     {Dim::kHidden, Dim::kSharedFfn}},
    {"ffn_down_shexp.weight",
     TensorRole::kSharedDown,
     Where::kSharedExpert,
     {Dim::kSharedFfn, Dim::kHidden}},
};

inline constexpr TensorRule kRouterBiasTensors[] = {
    {"exp_probs_b.bias", TensorRole::kRouterBias, Where::kMoe, {Dim::kExperts}, true},
};

inline constexpr TensorRule kMtpTensors[] = {
    {"nextn.eh_proj.weight", TensorRole::kMtpProj, Where::kMtp, {Dim::kTwoHidden, Dim::kHidden}},
    {"nextn.enorm.weight", TensorRole::kMtpEmbdNorm, Where::kMtp, {Dim::kHidden}},
    {"nextn.hnorm.weight", TensorRole::kMtpHiddenNorm, Where::kMtp, {Dim::kHidden}},
    // Absent: those of the trunk.
    {"nextn.shared_head_norm.weight", TensorRole::kMtpHeadNorm, Where::kMtp, {Dim::kHidden}, true},
    {"nextn.embed_tokens.weight",
     TensorRole::kMtpEmbd,
     Where::kMtp,
     {Dim::kHidden, Dim::kVocab},
     true},
    {"nextn.shared_head_head.weight",
     TensorRole::kMtpHead,
     Where::kMtp,
     {Dim::kHidden, Dim::kVocab},
     true},
};

}  // namespace packtrain::arch

#include "common/model/tensors.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "common/base/status_macros.h"
#include "common/weights/gguf.h"

namespace packtrain {
namespace {

bool Applies(Where where, const ModelConfig& config, int layer) {
  if (where == Where::kGlobal) return layer < 0;
  if (layer < 0) return false;
  const LayerConfig& kinds = config.layers[static_cast<size_t>(layer)];
  switch (where) {
    case Where::kGlobal:
      return false;
    case Where::kEveryLayer:
      return true;
    case Where::kAttention:
      return kinds.attention != AttentionKind::kGatedDeltaNet;
    case Where::kQLora:
      return config.mla.q_lora_rank > 0;
    case Where::kNoQLora:
      return config.mla.q_lora_rank == 0;
    case Where::kGatedDeltaNet:
      return kinds.attention == AttentionKind::kGatedDeltaNet;
    case Where::kFullIndexer:
      return kinds.indexer == IndexerKind::kFull;
    case Where::kDense:
      return kinds.ffn == FfnKind::kDense;
    case Where::kMoe:
      return kinds.ffn == FfnKind::kMoe;
    case Where::kSharedExpert:
      return kinds.ffn == FfnKind::kMoe && config.moe.shared_dim > 0;
    case Where::kMtp:
      return layer >= config.num_layers;
  }
  return false;
}

std::string FullName(const TensorRule& rule, int layer) {
  return layer < 0 ? std::string(rule.name) : absl::StrFormat("blk.%d.%s", layer, rule.name);
}

absl::Status CheckShape(const TensorRule& rule, const ModelConfig& config, const GgufFile& file,
                        const GgufTensor& tensor) {
  std::vector<uint64_t> wanted;
  for (Dim dim : rule.dims) {
    if (dim != Dim::kNone) wanted.push_back(DimSize(dim, config));
  }
  // Trailing dimensions of 1 may be written or left out.
  std::vector<uint64_t> dims = tensor.dims;
  while (dims.size() > wanted.size() && dims.back() == 1) dims.pop_back();
  while (dims.size() < wanted.size()) dims.push_back(1);
  if (dims == wanted) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      file.path(), ": tensor ", tensor.name, " has shape {", absl::StrJoin(tensor.dims, ", "),
      "}, its metadata give {", absl::StrJoin(wanted, ", "), "}"));
}

// Files of some quantisers carry factors beside a weight; left out they would give nonsense.
absl::Status CheckNoScale(const GgufFile& file, const GgufTensor& tensor) {
  const std::string scale = absl::StrCat(absl::StripSuffix(tensor.name, ".weight"), ".scale");
  if (file.FindTensor(scale) == nullptr) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(file.path(), ": tensor ", scale, " is not supported"));
}

}  // namespace

uint64_t DimSize(Dim dim, const ModelConfig& config) {
  const auto size = [](int64_t value) { return static_cast<uint64_t>(value); };
  const MlaConfig& mla = config.mla;
  const IndexerConfig& indexer = config.indexer;
  const GqaConfig& gqa = config.gqa;
  const DeltaNetConfig& delta = config.delta_net;
  const int64_t heads = config.num_heads;
  const int64_t q_rows = heads * gqa.key_dim * (gqa.output_gate ? 2 : 1);
  const int64_t k_rows = int64_t{gqa.num_kv_heads} * gqa.key_dim;
  const int64_t v_rows = int64_t{gqa.num_kv_heads} * gqa.value_dim;
  switch (dim) {
    case Dim::kNone:
      return 1;
    case Dim::kHidden:
      return size(config.hidden_dim);
    case Dim::kTwoHidden:
      return size(2 * int64_t{config.hidden_dim});
    case Dim::kVocab:
      return size(config.vocab_size);
    case Dim::kHeads:
      return size(heads);
    case Dim::kQLora:
      return size(mla.q_lora_rank);
    case Dim::kKvLora:
      return size(mla.kv_lora_rank);
    case Dim::kKvLoraRope:
      return size(int64_t{mla.kv_lora_rank} + config.rope.dims);
    case Dim::kMlaQ:
      return size(heads * (int64_t{mla.nope_dim} + config.rope.dims));
    case Dim::kNope:
      return size(mla.nope_dim);
    case Dim::kMlaValue:
      return size(mla.value_dim);
    case Dim::kMlaOut:
      return size(heads * mla.value_dim);
    case Dim::kIndexerQ:
      return size(int64_t{indexer.num_heads} * indexer.head_dim);
    case Dim::kIndexerDim:
      return size(indexer.head_dim);
    case Dim::kIndexerHeads:
      return size(indexer.num_heads);
    case Dim::kGqaQ:
      return size(q_rows);
    case Dim::kGqaK:
      return size(k_rows);
    case Dim::kGqaV:
      return size(v_rows);
    case Dim::kGqaQkv:
      return size(q_rows + k_rows + v_rows);
    case Dim::kGqaOut:
      return size(heads * gqa.value_dim);
    case Dim::kKeyDim:
      return size(gqa.key_dim);
    case Dim::kConvKernel:
      return size(delta.conv_kernel);
    case Dim::kConvChannels:
      return size(delta.conv_channels());
    case Dim::kDeltaInner:
      return size(delta.inner_dim());
    case Dim::kDeltaHeads:
      return size(delta.num_value_heads);
    case Dim::kDeltaDim:
      return size(delta.head_dim);
    case Dim::kDenseFfn:
      return size(config.dense_dim);
    case Dim::kExperts:
      return size(config.moe.num_experts);
    case Dim::kExpertFfn:
      return size(config.moe.expert_dim);
    case Dim::kTwoExpertFfn:
      return size(2 * int64_t{config.moe.expert_dim});
    case Dim::kSharedFfn:
      return size(config.moe.shared_dim);
  }
  return 0;
}

absl::StatusOr<ModelTensors> ModelTensors::Resolve(const ModelConfig& config,
                                                   const GgufFile& file) {
  ModelTensors tensors;
  const int blocks = static_cast<int>(config.layers.size());
  for (int layer = -1; layer < blocks; ++layer) {
    if (layer == config.num_layers) {
      const std::string probe = absl::StrCat("blk.", layer, ".nextn.eh_proj.weight");
      if (file.FindTensor(probe) == nullptr) break;
      tensors.has_mtp_ = true;
    }
    for (std::span<const TensorRule> group : config.arch->tensors) {
      for (const TensorRule& rule : group) {
        if (!Applies(rule.where, config, layer)) continue;
        const std::string name = FullName(rule, layer);
        const GgufTensor* tensor = file.FindTensor(name);
        if (tensor == nullptr) {
          if (rule.optional) continue;
          // The replacement stands behind what it replaces, so it is looked up by name.
          const auto replaces = [&](const TensorRule& other) {
            return other.role == rule.replaced_by &&
                   file.FindTensor(FullName(other, layer)) != nullptr;
          };
          if (std::any_of(group.begin(), group.end(), replaces)) continue;
          return absl::InvalidArgumentError(
              absl::StrCat(file.path(), ": tensor ", name, " is missing"));
        }
        RETURN_IF_ERROR(CheckShape(rule, config, file, *tensor));
        RETURN_IF_ERROR(CheckNoScale(file, *tensor));
        tensors.Add(rule.role, layer, tensor);
      }
    }
  }
  return tensors;
}

void ModelTensors::Add(TensorRole role, int layer, const GgufTensor* tensor) {
  all_.push_back({.role = role, .layer = layer, .tensor = tensor});
  index_[{layer, role}] = tensor;
}

const GgufTensor* ModelTensors::Find(TensorRole role, int layer) const {
  const auto found = index_.find({layer, role});
  return found == index_.end() ? nullptr : found->second;
}

std::vector<ModelTensor> ShardTensors(const ModelConfig& config, const ModelTensors& tensors,
                                      const Shard& shard) {
  const bool tied = tensors.Find(TensorRole::kOutput, -1) == nullptr;
  const auto needed = [&](const ModelTensor& t) {
    switch (t.role) {
      case TensorRole::kTokenEmbd:
        return shard.embeds || (tied && shard.has_head) || shard.has_mtp;
      case TensorRole::kOutputNorm:
      case TensorRole::kOutput:
        return shard.has_head || shard.has_mtp;
      default:
        break;
    }
    if (t.layer >= config.num_layers) return shard.has_mtp;
    return IsRoutedExpert(t.role) ? t.layer >= shard.first_experts && t.layer < shard.last_experts
                                  : t.layer >= shard.first_layer && t.layer < shard.last_layer;
  };
  std::vector<ModelTensor> result;
  std::copy_if(tensors.all().begin(), tensors.all().end(), std::back_inserter(result), needed);
  return result;
}

}  // namespace packtrain

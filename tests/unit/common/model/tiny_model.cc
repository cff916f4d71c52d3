#include "tests/unit/common/model/tiny_model.h"

#include "common/base/check.h"
#include "common/model/arch/description.h"
#include "tests/support/gguf_writer.h"
#include "tests/support/test_files.h"

namespace packtrain {
namespace {

void AddKeys(const std::map<std::string, TinyValue>& keys, GgufWriter* writer) {
  for (const auto& [name, value] : keys) {
    const std::string& key = name;
    std::visit(
        [&](const auto& v) {
          using T = std::decay_t<decltype(v)>;
          if constexpr (std::is_same_v<T, uint32_t>) writer->AddU32(key, v);
          if constexpr (std::is_same_v<T, float>) writer->AddF32(key, v);
          if constexpr (std::is_same_v<T, bool>) writer->AddBool(key, v);
          if constexpr (std::is_same_v<T, std::string>) writer->AddString(key, v);
          if constexpr (std::is_same_v<T, std::vector<int32_t>>) writer->AddI32Array(key, v);
          if constexpr (std::is_same_v<T, std::vector<bool>>) writer->AddBoolArray(key, v);
          if constexpr (std::is_same_v<T, std::vector<std::string>>) writer->AddStringArray(key, v);
        },
        value);
  }
}

std::unique_ptr<GgufFile> ParseOrDie(const std::string& bytes) {
  auto file = GgufFile::Parse(AsBytes(bytes), "tiny.gguf");
  CHECK_MSG(file.ok(), file.status().ToString());
  return std::move(file).value();
}

}  // namespace

std::unique_ptr<GgufFile> TinyModel::Metadata() {
  GgufWriter writer;
  AddKeys(keys, &writer);
  bytes_ = writer.Finish();
  return ParseOrDie(bytes_);
}

std::unique_ptr<GgufFile> TinyModel::File() {
  const auto metadata = Metadata();
  const auto config = ReadModelConfig(*metadata);
  CHECK_MSG(config.ok(), config.status().ToString());
  GgufWriter writer;
  AddKeys(keys, &writer);
  const auto add = [&](const std::string& name, const std::vector<uint64_t>& dims) {
    uint64_t elements = 1;
    for (uint64_t dim : dims) elements *= dim;
    writer.AddF32Tensor(name, dims, std::vector<float>(elements));
  };
  // Every rule in every layer: what a layer does not have is too much in the file and ignored.
  std::map<std::string, std::vector<uint64_t>> tensors;
  for (std::span<const TensorRule> group : config->arch->tensors) {
    for (const TensorRule& rule : group) {
      if (rule.role == TensorRole::kQkv || rule.role == TensorRole::kExpertsGateUp) continue;
      std::vector<uint64_t> dims;
      for (Dim dim : rule.dims) {
        if (dim != Dim::kNone) dims.push_back(DimSize(dim, *config));
      }
      bool empty = false;
      for (uint64_t dim : dims) empty = empty || dim == 0;
      if (empty) continue;
      const int layers = rule.where == Where::kGlobal ? 0 : static_cast<int>(config->layers.size());
      if (layers == 0) tensors.emplace(rule.name, dims);
      for (int i = 0; i < layers; ++i) {
        // Here one name means two things.
        const bool delta =
            config->layers[static_cast<size_t>(i)].attention == AttentionKind::kGatedDeltaNet;
        if (rule.where == Where::kGatedDeltaNet && !delta) continue;
        tensors.emplace("blk." + std::to_string(i) + "." + std::string(rule.name), dims);
      }
    }
  }
  for (const auto& [name, dims] : shapes) tensors[name] = dims;
  for (const auto& [name, dims] : tensors) {
    if (!without.contains(name)) add(name, dims);
  }
  bytes_ = writer.Finish();
  return ParseOrDie(bytes_);
}

TinyModel MakeTinyModel(const std::string& architecture) {
  TinyModel model;
  const auto set = [&](const std::string& key, TinyValue value) {
    model.keys[architecture + "." + key] = std::move(value);
  };
  model.keys["general.architecture"] = architecture;
  model.keys["tokenizer.ggml.tokens"] = std::vector<std::string>{"a", "b", "c", "d", "e"};
  const ArchDescription* arch = FindArchitecture(architecture);
  CHECK(arch != nullptr);
  set("context_length", 128U);
  set("embedding_length", 8U);
  set("block_count", 6U);
  set("attention.head_count", 2U);
  set("attention.layer_norm_rms_epsilon", 1e-5F);
  set("expert_count", 4U);
  set("expert_used_count", 2U);
  set("expert_feed_forward_length", 6U);
  set("rope.dimension_count", 4U);
  if (arch->attention == AttentionKind::kMla) {
    set("attention.q_lora_rank", 5U);
    set("attention.kv_lora_rank", 7U);
    set("attention.key_length_mla", 10U);
    set("attention.value_length_mla", 3U);
    set("attention.key_length", 11U);
    set("attention.value_length", 7U);
  } else {
    set("attention.head_count_kv", 1U);
    set("attention.key_length", 6U);
    set("attention.value_length", 6U);
  }
  if (arch->indexer != IndexerRule::kNone) {
    set("attention.indexer.head_count", 2U);
    set("attention.indexer.key_length", 6U);
    set("attention.indexer.top_k", 3U);
  }
  if (arch->router == RouterRule::kRequired) set("expert_gating_func", 2U);
  if (arch->shared_expert == SharedExpertRule::kCount) set("expert_shared_count", 1U);
  if (arch->shared_expert == SharedExpertRule::kGatedWidth) {
    set("expert_shared_feed_forward_length", 5U);
  }
  if (arch->has_dense_lead) {
    set("leading_dense_block_count", 1U);
    set("feed_forward_length", 9U);
  }
  if (arch->has_delta_net) {
    set("ssm.conv_kernel", 4U);
    set("ssm.state_size", 3U);
    set("ssm.time_step_rank", 4U);
    set("ssm.group_count", 2U);
    set("ssm.inner_size", 12U);
  }
  return model;
}

std::vector<std::string> ArchitectureNames() {
  std::vector<std::string> names;
  for (const ArchDescription* arch : AllArchitectures()) names.emplace_back(arch->name);
  return names;
}

}  // namespace packtrain

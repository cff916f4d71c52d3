#include "common/model/config.h"

#include <algorithm>
#include <cmath>
#include <string_view>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "common/base/status_macros.h"
#include "common/model/arch/description.h"
#include "common/weights/gguf.h"

namespace packtrain {
namespace {

// Far above any model, low enough that products of three sizes fit 64 bits.
constexpr int64_t kMaxSize = 1 << 20;
constexpr int64_t kMaxPositions = int64_t{1} << 30;

// Keys below "<architecture>.", with errors that name file and key.
class Keys {
 public:
  Keys(const GgufFile& file, std::string_view architecture)
      : file_(file), prefix_(std::string(architecture) + ".") {}

  std::string Name(std::string_view key) const { return prefix_ + std::string(key); }
  bool Has(std::string_view key) const { return file_.Find(Name(key)) != nullptr; }

  absl::Status Error(std::string_view key, std::string_view problem) const {
    return absl::InvalidArgumentError(
        absl::StrFormat("%s: %s %s", file_.path(), Name(key), problem));
  }

  // An integer in [low, high]; arrays (one entry a layer) count as the number they all hold.
  absl::StatusOr<int> Size(std::string_view key, int64_t low, int64_t high) const {
    const std::string name = Name(key);
    const GgufValue* value = file_.Find(name);
    if (value == nullptr) return Error(key, "is missing");
    int64_t number = 0;
    if (value->type == GgufValueType::kArray) {
      ASSIGN_OR_RETURN(const std::vector<int64_t> numbers, file_.GetIntArray(name));
      if (numbers.empty()) return Error(key, "is an empty array");
      for (int64_t n : numbers) {
        if (n != numbers[0]) {
          return Error(key, absl::StrCat("differs between layers (", numbers[0], " and ", n,
                                         "), which is not supported"));
        }
      }
      number = numbers[0];
    } else {
      ASSIGN_OR_RETURN(const uint64_t unsigned_number, file_.GetU64(name));
      number = static_cast<int64_t>(std::min<uint64_t>(unsigned_number, INT64_MAX));
    }
    if (number < low || number > high) {
      return Error(key, absl::StrCat("is ", number, ", allowed are ", low, " to ", high));
    }
    return static_cast<int>(number);
  }
  absl::StatusOr<int> SizeOr(std::string_view key, int64_t low, int64_t high, int fallback) const {
    return Has(key) ? Size(key, low, high) : fallback;
  }
  absl::StatusOr<float> Float(std::string_view key, float low, float high) const {
    if (!Has(key)) return Error(key, "is missing");
    ASSIGN_OR_RETURN(const float number, file_.GetF32(Name(key)));
    if (!(number >= low && number <= high)) {
      return Error(key, absl::StrCat("is ", number, ", allowed are ", low, " to ", high));
    }
    return number;
  }
  absl::StatusOr<float> FloatOr(std::string_view key, float low, float high, float fallback) const {
    return Has(key) ? Float(key, low, high) : fallback;
  }
  const GgufFile& file() const { return file_; }

 private:
  const GgufFile& file_;
  std::string prefix_;
};

// The key must hold what the others imply; absent is fine.
absl::Status Expect(const Keys& keys, std::string_view key, int64_t implied, std::string_view why) {
  if (!keys.Has(key)) return absl::OkStatus();
  ASSIGN_OR_RETURN(const uint64_t value, keys.file().GetU64(keys.Name(key)));
  if (value == static_cast<uint64_t>(implied)) return absl::OkStatus();
  return keys.Error(key, absl::StrFormat("is %d but %s give %d", value, why, implied));
}

absl::Status ReadVocabulary(const Keys& keys, ModelConfig* config) {
  const GgufValue* tokens = keys.file().Find("tokenizer.ggml.tokens");
  if (tokens != nullptr && tokens->type == GgufValueType::kArray && tokens->array_size > 0) {
    if (tokens->array_size > static_cast<uint64_t>(kMaxPositions)) {
      return absl::InvalidArgumentError(absl::StrCat(
          keys.file().path(), ": tokenizer.ggml.tokens has ", tokens->array_size, " entries"));
    }
    config->vocab_size = static_cast<int>(tokens->array_size);
    return absl::OkStatus();
  }
  ASSIGN_OR_RETURN(config->vocab_size, keys.Size("vocab_size", 1, kMaxPositions));
  return absl::OkStatus();
}

absl::Status ReadRope(const Keys& keys, const ArchDescription& arch, int head_dim,
                      ModelConfig* config) {
  RopeConfig& rope = config->rope;
  rope.kind = arch.rope;
  ASSIGN_OR_RETURN(rope.dims, keys.SizeOr("rope.dimension_count", 2, head_dim, head_dim));
  if (rope.dims % 2 != 0) {
    return keys.Error("rope.dimension_count", absl::StrCat("is ", rope.dims, ", must be even"));
  }
  ASSIGN_OR_RETURN(rope.base, keys.FloatOr("rope.freq_base", 1.0F, 1e12F, 10000.0F));
  std::string_view scaling = "none";
  if (keys.Has("rope.scaling.type")) {
    ASSIGN_OR_RETURN(scaling, keys.file().GetString(keys.Name("rope.scaling.type")));
  }
  const std::string_view factor_key =
      keys.Has("rope.scaling.factor") ? "rope.scaling.factor" : "rope.scale_linear";
  ASSIGN_OR_RETURN(float factor, keys.FloatOr(factor_key, 0.0F, 1e6F, 1.0F));
  if (factor == 0.0F) factor = 1.0F;
  if (scaling == "none") return absl::OkStatus();
  rope.factor = factor;
  if (scaling == "linear") return absl::OkStatus();
  if (scaling != "yarn" || !arch.allows_yarn) {
    return keys.Error("rope.scaling.type",
                      absl::StrFormat("is \"%s\", allowed are none, linear%s", scaling,
                                      arch.allows_yarn ? ", yarn" : ""));
  }
  rope.yarn = true;
  ASSIGN_OR_RETURN(rope.original_context, keys.SizeOr("rope.scaling.original_context_length", 1,
                                                      kMaxPositions, config->context_length));
  return absl::OkStatus();
}

// Files of these families store a tenth of the multiplier.
absl::StatusOr<float> YarnAttentionFactor(const Keys& keys, const RopeConfig& rope) {
  ASSIGN_OR_RETURN(const float log_multiplier,
                   keys.Float("rope.scaling.yarn_log_multiplier", 0.0F, 10.0F));
  return 1.0F + 0.1F * (log_multiplier / 0.1F) * std::log(rope.factor);
}

absl::Status ReadMla(const Keys& keys, const ArchDescription& arch, ModelConfig* config) {
  MlaConfig& mla = config->mla;
  // Without an indexer queries may come straight from the hidden state ("lite" models).
  if (arch.indexer == IndexerRule::kNone) {
    ASSIGN_OR_RETURN(mla.q_lora_rank, keys.SizeOr("attention.q_lora_rank", 0, kMaxSize, 0));
  } else {
    ASSIGN_OR_RETURN(mla.q_lora_rank, keys.Size("attention.q_lora_rank", 1, kMaxSize));
  }
  ASSIGN_OR_RETURN(mla.kv_lora_rank, keys.Size("attention.kv_lora_rank", 1, kMaxSize));
  ASSIGN_OR_RETURN(const int head_dim, keys.Size("attention.key_length_mla", 2, kMaxSize));
  ASSIGN_OR_RETURN(mla.value_dim, keys.Size("attention.value_length_mla", 1, kMaxSize));
  if (!keys.Has("rope.dimension_count")) return keys.Error("rope.dimension_count", "is missing");
  RETURN_IF_ERROR(ReadRope(keys, arch, head_dim - 1, config));
  mla.nope_dim = head_dim - config->rope.dims;
  RETURN_IF_ERROR(Expect(keys, "attention.key_length", mla.kv_lora_rank + config->rope.dims,
                         "attention.kv_lora_rank and rope.dimension_count"));
  RETURN_IF_ERROR(
      Expect(keys, "attention.value_length", mla.kv_lora_rank, "attention.kv_lora_rank"));
  RETURN_IF_ERROR(Expect(keys, "attention.head_count_kv", 1, "absorbed latent attention"));
  if (keys.Has("attention.temperature_scale")) {
    ASSIGN_OR_RETURN(const float scale,
                     keys.file().GetF32(keys.Name("attention.temperature_scale")));
    if (scale != 0.0F) {
      return keys.Error("attention.temperature_scale", absl::StrCat("is ", scale, ", must be 0"));
    }
  }
  config->attention_scale = 1.0F / std::sqrt(static_cast<float>(head_dim));
  if (config->rope.yarn) {
    ASSIGN_OR_RETURN(const float factor, YarnAttentionFactor(keys, config->rope));
    config->attention_scale *= factor * factor;
  }
  return absl::OkStatus();
}

absl::Status ReadGqa(const Keys& keys, const ArchDescription& arch, ModelConfig* config) {
  GqaConfig& gqa = config->gqa;
  gqa.output_gate = arch.output_gate;
  ASSIGN_OR_RETURN(gqa.num_kv_heads,
                   keys.SizeOr("attention.head_count_kv", 1, config->num_heads, config->num_heads));
  if (config->num_heads % gqa.num_kv_heads != 0) {
    return keys.Error("attention.head_count_kv",
                      absl::StrCat("is ", gqa.num_kv_heads, ", which does not divide the ",
                                   config->num_heads, " of attention.head_count"));
  }
  const int fallback = std::max(1, config->hidden_dim / config->num_heads);
  ASSIGN_OR_RETURN(gqa.key_dim, keys.SizeOr("attention.key_length", 2, kMaxSize, fallback));
  ASSIGN_OR_RETURN(gqa.value_dim, keys.SizeOr("attention.value_length", 1, kMaxSize, fallback));
  if (gqa.output_gate && gqa.value_dim != gqa.key_dim) {
    return keys.Error("attention.value_length",
                      absl::StrCat("is ", gqa.value_dim, ", gated attention needs the ",
                                   gqa.key_dim, " of attention.key_length"));
  }
  config->attention_scale = 1.0F / std::sqrt(static_cast<float>(gqa.key_dim));
  return ReadRope(keys, arch, gqa.key_dim, config);
}

absl::Status ReadDeltaNet(const Keys& keys, ModelConfig* config) {
  DeltaNetConfig& delta = config->delta_net;
  ASSIGN_OR_RETURN(delta.conv_kernel, keys.Size("ssm.conv_kernel", 2, 64));
  ASSIGN_OR_RETURN(delta.head_dim, keys.Size("ssm.state_size", 1, 65536));
  ASSIGN_OR_RETURN(delta.num_value_heads, keys.Size("ssm.time_step_rank", 1, 4096));
  ASSIGN_OR_RETURN(delta.num_key_heads, keys.Size("ssm.group_count", 1, 4096));
  if (delta.num_value_heads % delta.num_key_heads != 0) {
    return keys.Error("ssm.group_count",
                      absl::StrCat("is ", delta.num_key_heads, ", which does not divide the ",
                                   delta.num_value_heads, " of ssm.time_step_rank"));
  }
  if (!keys.Has("ssm.inner_size")) return keys.Error("ssm.inner_size", "is missing");
  return Expect(keys, "ssm.inner_size", int64_t{delta.num_value_heads} * delta.head_dim,
                "ssm.time_step_rank and ssm.state_size");
}

absl::Status ReadSharedExpert(const Keys& keys, const ArchDescription& arch, MoeConfig* moe) {
  switch (arch.shared_expert) {
    case SharedExpertRule::kNone:
      return absl::OkStatus();
    case SharedExpertRule::kCount: {
      ASSIGN_OR_RETURN(const int count, keys.Size("expert_shared_count", 0, 64));
      moe->shared_dim = count * moe->expert_dim;
      return absl::OkStatus();
    }
    case SharedExpertRule::kGatedWidth: {
      const std::string_view key = keys.Has("expert_shared_feed_forward_length")
                                       ? "expert_shared_feed_forward_length"
                                       : "feed_forward_length";
      ASSIGN_OR_RETURN(moe->shared_dim, keys.Size(key, 1, kMaxSize));
      return absl::OkStatus();
    }
  }
  return absl::OkStatus();
}

absl::Status ReadRouter(const Keys& keys, const ArchDescription& arch, MoeConfig* moe) {
  ASSIGN_OR_RETURN(moe->scale, keys.FloatOr("expert_weights_scale", 0.0F, 1e6F, 1.0F));
  if (moe->scale == 0.0F) moe->scale = 1.0F;
  if (arch.router == RouterRule::kSoftmaxNormed) {
    moe->gating = GatingKind::kSoftmax;
    moe->normalise = true;
    return absl::OkStatus();
  }
  if (arch.router == RouterRule::kRequired || keys.Has("expert_gating_func")) {
    ASSIGN_OR_RETURN(const int gating, keys.Size("expert_gating_func", 1, 2));
    moe->gating = static_cast<GatingKind>(gating);
  } else {
    moe->gating =
        arch.router == RouterRule::kDefaultSigmoid ? GatingKind::kSigmoid : GatingKind::kSoftmax;
  }
  if (keys.Has("expert_weights_norm")) {
    ASSIGN_OR_RETURN(moe->normalise, keys.file().GetBool(keys.Name("expert_weights_norm")));
  }
  ASSIGN_OR_RETURN(moe->num_groups, keys.SizeOr("expert_group_count", 0, moe->num_experts, 1));
  moe->num_groups = std::max(1, moe->num_groups);
  if (moe->num_experts % moe->num_groups != 0) {
    return keys.Error("expert_group_count",
                      absl::StrCat("is ", moe->num_groups, ", which does not divide the ",
                                   moe->num_experts, " of expert_count"));
  }
  if (moe->num_groups == 1) return absl::OkStatus();
  ASSIGN_OR_RETURN(moe->groups_used, keys.Size("expert_group_used_count", 1, moe->num_groups));
  if (moe->groups_used * (moe->num_experts / moe->num_groups) < moe->top_k) {
    return keys.Error("expert_group_used_count",
                      absl::StrCat("is ", moe->groups_used, ": too few groups for the ", moe->top_k,
                                   " of expert_used_count"));
  }
  return absl::OkStatus();
}

absl::Status ReadMoe(const Keys& keys, const ArchDescription& arch, ModelConfig* config) {
  MoeConfig& moe = config->moe;
  ASSIGN_OR_RETURN(moe.num_experts, keys.Size("expert_count", 1, 65536));
  ASSIGN_OR_RETURN(moe.top_k, keys.Size("expert_used_count", 1, moe.num_experts));
  if (keys.Has("expert_feed_forward_length") || arch.shared_expert == SharedExpertRule::kCount) {
    ASSIGN_OR_RETURN(moe.expert_dim, keys.Size("expert_feed_forward_length", 1, kMaxSize));
  } else {
    ASSIGN_OR_RETURN(const int width, keys.Size("feed_forward_length", 1, kMaxSize));
    moe.expert_dim = std::max(1, width / moe.top_k);
  }
  RETURN_IF_ERROR(ReadSharedExpert(keys, arch, &moe));
  return ReadRouter(keys, arch, &moe);
}

// Entry i: layer i scores keys itself. Files of several converters spell it differently.
absl::StatusOr<std::vector<bool>> ReadIndexerTypes(const Keys& keys, const ModelConfig& config) {
  const int layers = config.num_layers;
  std::vector<bool> full(static_cast<size_t>(layers), true);
  constexpr std::string_view kTypes = "attention.indexer.types";
  constexpr std::string_view kFrequency = "attention.indexer.top_k_frequency";
  constexpr std::string_view kOffset = "attention.indexer.skip_top_k_offset";
  if (const GgufValue* types = keys.file().Find(keys.Name(kTypes)); types != nullptr) {
    if (types->type != GgufValueType::kArray) return keys.Error(kTypes, "is not an array");
    // Some files count the MTP layers too.
    const uint64_t size = types->array_size;
    if (size != static_cast<uint64_t>(layers) && size != config.layers.size()) {
      return keys.Error(kTypes,
                        absl::StrCat("has ", size, " entries, the model has ", layers, " layers"));
    }
    if (types->element_type == GgufValueType::kString) {
      for (size_t i = 0; i < full.size(); ++i) {
        const std::string_view text = types->array_strings[i];
        if (text != "full" && text != "shared") {
          return keys.Error(
              kTypes, absl::StrFormat("has entry %d \"%s\", allowed are full and shared", i, text));
        }
        full[i] = text == "full";
      }
    } else {
      ASSIGN_OR_RETURN(const std::vector<int64_t> flags,
                       keys.file().GetIntArray(keys.Name(kTypes)));
      for (size_t i = 0; i < full.size(); ++i) full[i] = flags[i] != 0;
    }
  } else if (keys.Has(kFrequency)) {
    ASSIGN_OR_RETURN(const int frequency, keys.Size(kFrequency, 1, kMaxSize));
    ASSIGN_OR_RETURN(const int offset, keys.SizeOr(kOffset, 0, kMaxSize, 0));
    for (int i = 0; i < layers; ++i) {
      full[static_cast<size_t>(i)] = std::max(i - offset + 1, 0) % frequency == 0;
    }
  } else if (config.context_length >= 1048576) {
    // Only GLM-5.2 has this context; its pattern is full for 0, 1, 2, 6, 10, ...
    for (int i = 0; i < layers; ++i) full[static_cast<size_t>(i)] = i < 2 || i % 4 == 2;
  }
  if (layers > 0 && !full[0]) {
    return keys.Error(kTypes, "marks layer 0 as shared, but there is no layer before it");
  }
  return full;
}

absl::Status ReadIndexer(const Keys& keys, const ArchDescription& arch, ModelConfig* config) {
  IndexerConfig& indexer = config->indexer;
  indexer.rope = arch.indexer_rope;
  ASSIGN_OR_RETURN(indexer.num_heads, keys.Size("attention.indexer.head_count", 1, kMaxSize));
  ASSIGN_OR_RETURN(indexer.head_dim,
                   keys.Size("attention.indexer.key_length", config->rope.dims, kMaxSize));
  ASSIGN_OR_RETURN(indexer.top_k, keys.Size("attention.indexer.top_k", 1, kMaxSize));
  std::vector<bool> full(static_cast<size_t>(config->num_layers), true);
  if (arch.indexer == IndexerRule::kFromMetadata) {
    ASSIGN_OR_RETURN(full, ReadIndexerTypes(keys, *config));
  }
  for (size_t i = 0; i < full.size(); ++i) {
    config->layers[i].indexer = full[i] ? IndexerKind::kFull : IndexerKind::kShared;
  }
  return absl::OkStatus();
}

absl::Status MarkDeltaNetLayers(const Keys& keys, ModelConfig* config) {
  const auto layers = static_cast<size_t>(config->num_layers);
  constexpr std::string_view kFlags = "attention.recurrent_layers";
  std::vector<bool> recurrent(layers);
  if (keys.Has(kFlags)) {
    ASSIGN_OR_RETURN(const std::vector<int64_t> flags, keys.file().GetIntArray(keys.Name(kFlags)));
    if (flags.size() != layers && flags.size() != config->layers.size()) {
      return keys.Error(kFlags, absl::StrCat("has ", flags.size(), " entries, the model has ",
                                             config->layers.size(), " blocks"));
    }
    for (size_t i = 0; i < layers; ++i) recurrent[i] = flags[i] != 0;
  } else {
    ASSIGN_OR_RETURN(const int interval, keys.SizeOr("full_attention_interval", 1, kMaxSize, 4));
    for (size_t i = 0; i < layers; ++i) recurrent[i] = (i + 1) % static_cast<size_t>(interval) != 0;
  }
  for (size_t i = 0; i < layers; ++i) {
    if (recurrent[i]) config->layers[i].attention = AttentionKind::kGatedDeltaNet;
  }
  return absl::OkStatus();
}

absl::Status ReadLayers(const Keys& keys, const ArchDescription& arch, ModelConfig* config) {
  ASSIGN_OR_RETURN(const int blocks, keys.Size("block_count", 1, 4096));
  ASSIGN_OR_RETURN(config->num_mtp_layers, keys.SizeOr("nextn_predict_layers", 0, blocks - 1, 0));
  config->num_layers = blocks - config->num_mtp_layers;
  config->layers.assign(static_cast<size_t>(blocks), LayerConfig{.attention = arch.attention});
  if (arch.has_dense_lead) {
    ASSIGN_OR_RETURN(const int dense,
                     keys.SizeOr("leading_dense_block_count", 0, config->num_layers, 0));
    for (int i = 0; i < dense; ++i) config->layers[static_cast<size_t>(i)].ffn = FfnKind::kDense;
    if (dense > 0) {
      ASSIGN_OR_RETURN(config->dense_dim, keys.Size("feed_forward_length", 1, kMaxSize));
    }
  }
  return arch.has_delta_net ? MarkDeltaNetLayers(keys, config) : absl::OkStatus();
}

}  // namespace

absl::StatusOr<ModelConfig> ReadModelConfig(const GgufFile& file) {
  ASSIGN_OR_RETURN(const std::string_view name, file.GetString("general.architecture"));
  ModelConfig config;
  config.arch = FindArchitecture(name);
  if (config.arch == nullptr) {
    std::vector<std::string> names;
    for (const ArchDescription* arch : AllArchitectures()) names.emplace_back(arch->name);
    return absl::InvalidArgumentError(
        absl::StrFormat("%s: general.architecture \"%s\" is not supported; supported are %s",
                        file.path(), name, absl::StrJoin(names, ", ")));
  }
  if (file.Find("general.name") != nullptr) {
    ASSIGN_OR_RETURN(config.name, file.GetString("general.name"));
  }
  const ArchDescription& arch = *config.arch;
  const Keys keys(file, name);
  RETURN_IF_ERROR(ReadVocabulary(keys, &config));
  ASSIGN_OR_RETURN(config.context_length, keys.Size("context_length", 1, kMaxPositions));
  ASSIGN_OR_RETURN(config.hidden_dim, keys.Size("embedding_length", 1, kMaxSize));
  ASSIGN_OR_RETURN(config.num_heads, keys.Size("attention.head_count", 1, 65536));
  ASSIGN_OR_RETURN(config.rms_eps, keys.Float("attention.layer_norm_rms_epsilon", 0.0F, 1.0F));
  RETURN_IF_ERROR(ReadLayers(keys, arch, &config));
  RETURN_IF_ERROR(arch.attention == AttentionKind::kMla ? ReadMla(keys, arch, &config)
                                                        : ReadGqa(keys, arch, &config));
  if (arch.has_delta_net) RETURN_IF_ERROR(ReadDeltaNet(keys, &config));
  RETURN_IF_ERROR(ReadMoe(keys, arch, &config));
  if (arch.indexer != IndexerRule::kNone) RETURN_IF_ERROR(ReadIndexer(keys, arch, &config));
  return config;
}

}  // namespace packtrain

// Aim: a model's sizes and layer kinds come from its metadata, and a key that is missing or that
// contradicts others is named. Method: the smallest file of each architecture, spoiled in one key.

#include "common/model/config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "common/model/kv_layout.h"
#include "tests/unit/common/model/tiny_model.h"

namespace packtrain {
namespace {

using testing::AllOf;
using testing::HasSubstr;

absl::StatusOr<ModelConfig> Read(TinyModel model) { return ReadModelConfig(*model.Metadata()); }

std::string Error(TinyModel model) {
  const auto config = Read(std::move(model));
  EXPECT_EQ(config.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(std::string(config.status().message()).find('\n'), std::string::npos);
  return std::string(config.status().message());
}

std::string ErrorWith(const std::string& architecture, const std::string& key, TinyValue value) {
  TinyModel model = MakeTinyModel(architecture);
  model.keys[architecture + "." + key] = std::move(value);
  return Error(std::move(model));
}

TEST(ModelConfigTest, EveryArchitectureReads) {
  EXPECT_EQ(ArchitectureNames().size(), 6U);
  for (const std::string& name : ArchitectureNames()) {
    const auto config = Read(MakeTinyModel(name));
    ASSERT_TRUE(config.ok()) << config.status();
    EXPECT_EQ(config->vocab_size, 5);
    EXPECT_EQ(config->num_layers, 6);
    EXPECT_EQ(config->layers.size(), 6U);
  }
}

TEST(ModelConfigTest, AMissingKeyIsNamed) {
  // Those that have a default.
  const std::set<std::string> optional = {
      "attention.head_count_kv",   "attention.key_length",      "attention.value_length",
      "feed_forward_length",       "leading_dense_block_count", "expert_shared_feed_forward_length",
      "expert_feed_forward_length"};
  for (const std::string& name : ArchitectureNames()) {
    const TinyModel complete = MakeTinyModel(name);
    for (const auto& [key, value] : complete.keys) {
      const std::string below = key.substr(key.find('.') + 1);
      if (!key.starts_with(name + ".") || optional.contains(below)) continue;
      // Heads are as wide as rotated where nothing else is said; two families project directly.
      if (below == "rope.dimension_count" &&
          !complete.keys.contains(name + ".attention.key_length_mla"))
        continue;
      if (below == "attention.q_lora_rank" && name == "deepseek2") continue;
      TinyModel model = complete;
      model.keys.erase(key);
      EXPECT_THAT(Error(model), AllOf(HasSubstr(key), HasSubstr("missing"), HasSubstr("tiny.gguf")))
          << key;
    }
  }
}

TEST(ModelConfigTest, AnUnknownArchitectureListsTheKnown) {
  TinyModel model = MakeTinyModel("qwen3moe");
  model.keys["general.architecture"] = std::string("llama");
  EXPECT_THAT(Error(model),
              AllOf(HasSubstr("\"llama\""), HasSubstr("glm-dsa"), HasSubstr("qwen35moe")));
}

TEST(ModelConfigTest, ContradictionsNameTheKeyAndBothValues) {
  EXPECT_THAT(ErrorWith("glm-dsa", "attention.key_length", 12U),
              AllOf(HasSubstr("glm-dsa.attention.key_length"), HasSubstr("12"), HasSubstr("11")));
  EXPECT_THAT(ErrorWith("glm-dsa", "attention.value_length", 6U), HasSubstr("value_length"));
  EXPECT_THAT(ErrorWith("qwen35moe", "ssm.inner_size", 13U),
              AllOf(HasSubstr("13"), HasSubstr("12")));
  EXPECT_THAT(ErrorWith("qwen35moe", "ssm.group_count", 3U), HasSubstr("ssm.group_count"));
  EXPECT_THAT(ErrorWith("qwen3moe", "attention.head_count_kv", 3U), HasSubstr("head_count_kv"));
  EXPECT_THAT(ErrorWith("qwen3moe", "expert_used_count", 5U),
              AllOf(HasSubstr("expert_used_count"), HasSubstr("5"), HasSubstr("4")));
  EXPECT_THAT(ErrorWith("qwen3moe", "rope.dimension_count", 3U), HasSubstr("even"));
  EXPECT_THAT(ErrorWith("qwen3moe", "rope.dimension_count", 8U), HasSubstr("rope.dimension_count"));
  EXPECT_THAT(ErrorWith("glm4moe", "nextn_predict_layers", 6U), HasSubstr("nextn_predict_layers"));
  EXPECT_THAT(ErrorWith("glm4moe", "expert_gating_func", 4U), HasSubstr("expert_gating_func"));
  EXPECT_THAT(ErrorWith("glm4moe", "embedding_length", 0U), HasSubstr("embedding_length is 0"));
  EXPECT_THAT(ErrorWith("deepseek2", "expert_group_count", 3U), HasSubstr("expert_group_count"));
  EXPECT_THAT(ErrorWith("qwen35moe", "attention.value_length", 4U), HasSubstr("value_length"));
  EXPECT_THAT(ErrorWith("glm-dsa", "rope.scaling.type", std::string("longrope")),
              HasSubstr("longrope"));
  EXPECT_THAT(ErrorWith("qwen3moe", "rope.scaling.type", std::string("yarn")), HasSubstr("yarn"));
  EXPECT_THAT(ErrorWith("deepseek2", "rope.scaling.type", std::string("yarn")),
              HasSubstr("yarn_log_multiplier"));
  EXPECT_THAT(ErrorWith("qwen3moe", "attention.head_count", std::vector<int32_t>{2, 4}),
              HasSubstr("differs between layers"));
}

std::vector<bool> FullLayers(const ModelConfig& config) {
  std::vector<bool> full;
  for (int i = 0; i < config.num_layers; ++i) {
    full.push_back(config.layers[static_cast<size_t>(i)].indexer == IndexerKind::kFull);
  }
  return full;
}

TEST(ModelConfigTest, IndexerTypesAreReadInEverySpelling) {
  const std::vector<bool> wanted = {true, true, false, false, true, false};
  const std::pair<std::string, TinyValue> spellings[] = {
      {"attention.indexer.types", wanted},
      {"attention.indexer.types", std::vector<int32_t>{1, 1, 0, 0, 1, 0}},
      {"attention.indexer.types",
       std::vector<std::string>{"full", "full", "shared", "shared", "full", "shared"}}};
  for (const auto& [key, value] : spellings) {
    TinyModel model = MakeTinyModel("glm-dsa");
    model.keys["glm-dsa." + key] = value;
    const auto config = Read(model);
    ASSERT_TRUE(config.ok()) << config.status();
    EXPECT_EQ(FullLayers(*config), wanted);
  }
  EXPECT_THAT(ErrorWith("glm-dsa", "attention.indexer.types",
                        std::vector<bool>{false, true, true, true, true, true}),
              HasSubstr("layer 0"));
  EXPECT_THAT(ErrorWith("glm-dsa", "attention.indexer.types", std::vector<bool>{true}),
              HasSubstr("1 entries"));
  EXPECT_THAT(ErrorWith("glm-dsa", "attention.indexer.types", std::vector<std::string>(6, "half")),
              HasSubstr("\"half\""));
}

TEST(ModelConfigTest, WithoutTypesTheContextTellsThePattern) {
  TinyModel model = MakeTinyModel("glm-dsa");
  EXPECT_EQ(FullLayers(*Read(model)), std::vector<bool>(6, true));
  model.keys["glm-dsa.block_count"] = 78U;
  model.keys["glm-dsa.context_length"] = 1048576U;
  const std::vector<bool> full = FullLayers(*Read(model));
  EXPECT_EQ(std::count(full.begin(), full.end(), true), 21);
  // The other converters' spelling of the same.
  model.keys["glm-dsa.attention.indexer.top_k_frequency"] = 4U;
  model.keys["glm-dsa.attention.indexer.skip_top_k_offset"] = 3U;
  model.keys["glm-dsa.context_length"] = 1000U;
  EXPECT_EQ(FullLayers(*Read(model)), full);
}

TEST(ModelConfigTest, EveryFourthLayerAttendsUnlessTheFileSaysOtherwise) {
  const auto attends = [](const ModelConfig& config) {
    std::vector<bool> result;
    for (const LayerConfig& layer : config.layers)
      result.push_back(layer.attention == AttentionKind::kGqa);
    return result;
  };
  TinyModel model = MakeTinyModel("qwen35moe");
  model.keys["qwen35moe.nextn_predict_layers"] = 1U;
  EXPECT_EQ(attends(*Read(model)), (std::vector<bool>{false, false, false, true, false, true}));
  model.keys["qwen35moe.full_attention_interval"] = 2U;
  EXPECT_EQ(attends(*Read(model)), (std::vector<bool>{false, true, false, true, false, true}));
  model.keys["qwen35moe.attention.recurrent_layers"] =
      std::vector<bool>{false, true, true, true, true, false};
  EXPECT_EQ(attends(*Read(model)), (std::vector<bool>{true, false, false, false, false, true}));
}

TEST(ModelConfigTest, AttentionScaleFollowsTheFullHead) {
  EXPECT_FLOAT_EQ(Read(MakeTinyModel("glm-dsa"))->attention_scale, 1 / std::sqrt(10.0F));
  TinyModel model = MakeTinyModel("deepseek2");
  model.keys["deepseek2.rope.scaling.type"] = std::string("yarn");
  model.keys["deepseek2.rope.scaling.factor"] = 40.0F;
  model.keys["deepseek2.rope.scaling.original_context_length"] = 4096U;
  model.keys["deepseek2.rope.scaling.yarn_log_multiplier"] = 0.1F;
  // 1 + 0.1 ln 40, squared, as DeepSeek-V3 has it.
  EXPECT_NEAR(Read(model)->attention_scale, 1.87385 / std::sqrt(10.0), 1e-5);
}

TEST(KvLayoutTest, BytesPerPositionAreThePublishedOnes) {
  // GLM-5.2: 576 values a layer, 128 more where there is an indexer.
  ModelConfig config;
  config.mla.kv_lora_rank = 512;
  config.rope.dims = 64;
  config.indexer.head_dim = 128;
  const LayerConfig shared = {.attention = AttentionKind::kMla, .indexer = IndexerKind::kShared};
  const LayerConfig full = {.attention = AttentionKind::kMla, .indexer = IndexerKind::kFull};
  EXPECT_EQ(KvBytesPerPosition(config, shared, KvCacheType::kF16), 1152U);
  EXPECT_EQ(KvBytesPerPosition(config, shared, KvCacheType::kQ8_0), 612U);
  EXPECT_EQ(KvBytesPerPosition(config, shared, KvCacheType::kQ4_1), 360U);
  EXPECT_EQ(KvBytesPerPosition(config, full, KvCacheType::kQ8_0), 612U + 136U);
  // Qwen3.6-35B-A3B: 62.8 MiB of state over 30 layers.
  config.delta_net = {
      .num_key_heads = 16, .num_value_heads = 32, .head_dim = 128, .conv_kernel = 4};
  const LayerConfig delta = {.attention = AttentionKind::kGatedDeltaNet};
  EXPECT_EQ(30 * RecurrentBytes(config, delta), 65863680U);
  EXPECT_EQ(KvBytesPerPosition(config, delta, KvCacheType::kF16), 0U);
  EXPECT_EQ(KvBytes(KvCacheType::kQ8_0, 33), 68U) << "a rest takes a block";
}

}  // namespace
}  // namespace packtrain

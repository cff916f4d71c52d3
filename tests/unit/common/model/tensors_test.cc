// Aim: a model's tensors are found and checked, and each worker gets its own. Method: the smallest
// file of each architecture, spoiled in one tensor.

#include "common/model/tensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/unit/common/model/tiny_model.h"

namespace packtrain {
namespace {

using testing::AllOf;
using testing::HasSubstr;

struct Resolved {
  TinyModel model;
  std::unique_ptr<GgufFile> file;
  ModelConfig config;
  absl::StatusOr<ModelTensors> tensors;
};

std::unique_ptr<Resolved> Resolve(TinyModel model) {
  auto resolved = std::make_unique<Resolved>();
  resolved->model = std::move(model);
  resolved->file = resolved->model.File();
  resolved->config = *ReadModelConfig(*resolved->file);
  resolved->tensors = ModelTensors::Resolve(resolved->config, *resolved->file);
  return resolved;
}

std::string Error(TinyModel model) {
  const auto resolved = Resolve(std::move(model));
  EXPECT_EQ(resolved->tensors.status().code(), absl::StatusCode::kInvalidArgument);
  return std::string(resolved->tensors.status().message());
}

TEST(ModelTensorsTest, EveryRequiredTensorIsMissedByName) {
  for (const std::string& name : ArchitectureNames()) {
    const auto complete = Resolve(MakeTinyModel(name));
    ASSERT_TRUE(complete->tensors.ok()) << name << ": " << complete->tensors.status();
    int required = 0;
    for (const ModelTensor& t : complete->tensors->all()) {
      TinyModel model = MakeTinyModel(name);
      model.without.insert(t.tensor->name);
      const auto without = Resolve(std::move(model));
      if (without->tensors.ok()) continue;  // optional
      ++required;
      EXPECT_THAT(std::string(without->tensors.status().message()),
                  AllOf(HasSubstr("tiny.gguf"), HasSubstr(t.tensor->name), HasSubstr("missing")));
    }
    EXPECT_GT(required, 6 * 9) << name;
  }
}

TEST(ModelTensorsTest, AWrongShapeIsShownWithTheRightOne) {
  TinyModel model = MakeTinyModel("glm-dsa");
  model.shapes["blk.2.attn_kv_a_mqa.weight"] = {8, 12};
  EXPECT_THAT(Error(model), AllOf(HasSubstr("blk.2.attn_kv_a_mqa.weight"), HasSubstr("{8, 12}"),
                                  HasSubstr("{8, 11}")));
  model = MakeTinyModel("glm-dsa");
  model.shapes["blk.1.attn_k_b.weight"] = {6, 7};
  EXPECT_THAT(Error(model), AllOf(HasSubstr("{6, 7}"), HasSubstr("{6, 7, 2}")));
}

TEST(ModelTensorsTest, CompanionScalesAreRefused) {
  TinyModel model = MakeTinyModel("qwen3moe");
  model.shapes["blk.3.ffn_up_exps.scale"] = {4};
  EXPECT_THAT(Error(model), HasSubstr("blk.3.ffn_up_exps.scale"));
}

TEST(ModelTensorsTest, FusedMatricesReplaceTheirParts) {
  TinyModel model = MakeTinyModel("qwen35moe");
  model.without = {"blk.2.ffn_gate_exps.weight", "blk.2.ffn_up_exps.weight"};
  EXPECT_THAT(Error(model), HasSubstr("blk.2.ffn_gate_exps.weight"));
  model.shapes["blk.2.ffn_gate_up_exps.weight"] = {8, 12, 4};
  const auto resolved = Resolve(model);
  ASSERT_TRUE(resolved->tensors.ok()) << resolved->tensors.status();
  EXPECT_NE(resolved->tensors->Find(TensorRole::kExpertsGateUp, 2), nullptr);
  EXPECT_EQ(resolved->tensors->Find(TensorRole::kExpertsGate, 2), nullptr);
}

TEST(ModelTensorsTest, MtpTensorsMayBeLeftOut) {
  TinyModel model = MakeTinyModel("glm4moe");
  model.keys["glm4moe.nextn_predict_layers"] = 1U;
  EXPECT_TRUE(Resolve(model)->tensors->has_mtp());
  model.without = {"blk.5.nextn.eh_proj.weight"};
  const auto resolved = Resolve(model);
  ASSERT_TRUE(resolved->tensors.ok());
  EXPECT_FALSE(resolved->tensors->has_mtp());
  EXPECT_EQ(resolved->tensors->Find(TensorRole::kAttnNorm, 5), nullptr);
}

TEST(ModelTensorsTest, IndexersOfSharedLayersAreIgnored) {
  TinyModel model = MakeTinyModel("glm-dsa");
  model.keys["glm-dsa.attention.indexer.types"] =
      std::vector<bool>{true, false, true, false, true, false};
  const auto resolved = Resolve(model);
  ASSERT_TRUE(resolved->tensors.ok());
  EXPECT_NE(resolved->tensors->Find(TensorRole::kIndexerK, 2), nullptr);
  EXPECT_EQ(resolved->tensors->Find(TensorRole::kIndexerK, 3), nullptr);
}

TEST(ShardTest, ShardsShareOutEveryTensorOnce) {
  for (const std::string& name : ArchitectureNames()) {
    const auto resolved = Resolve(MakeTinyModel(name));
    const Shard shards[] = {
        {.last_layer = 2, .embeds = true, .first_experts = 0, .last_experts = 2},
        {.first_layer = 2,
         .last_layer = 6,
         .has_head = true,
         .first_experts = 4,
         .last_experts = 6},
        {.first_experts = 2, .last_experts = 4}};
    std::map<std::string, int> owners;
    for (const Shard& shard : shards) {
      for (const ModelTensor& t : ShardTensors(resolved->config, *resolved->tensors, shard)) {
        ++owners[t.tensor->name];
        EXPECT_TRUE(shard.last_layer > 0 || IsRoutedExpert(t.role));
      }
    }
    for (const ModelTensor& t : resolved->tensors->all())
      EXPECT_EQ(owners[t.tensor->name], 1) << t.tensor->name;
  }
}

TEST(ShardTest, ATiedHeadNeedsTheEmbedding) {
  TinyModel model = MakeTinyModel("qwen3moe");
  model.without = {"output.weight"};
  const auto resolved = Resolve(model);
  const auto tensors = ShardTensors(resolved->config, *resolved->tensors,
                                    {.first_layer = 5, .last_layer = 6, .has_head = true});
  EXPECT_TRUE(std::any_of(tensors.begin(), tensors.end(),
                          [](const ModelTensor& t) { return t.role == TensorRole::kTokenEmbd; }));
}

}  // namespace
}  // namespace packtrain

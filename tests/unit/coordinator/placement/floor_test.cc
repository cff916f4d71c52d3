#include "coordinator/placement/floor.h"

#include <gtest/gtest.h>

namespace packtrain {
namespace {

constexpr double kGb = 1e9;

// Two MoE layers without attention or cache to speak of; 2 of 4 experts a token.
ModelFacts SmallModel() {
  ModelFacts model;
  model.config.num_layers = 2;
  model.config.hidden_dim = 64;
  model.config.vocab_size = 100;
  model.config.moe.num_experts = 4;
  model.config.moe.top_k = 2;
  for (int l = 0; l < 2; ++l) {
    model.config.layers.push_back({AttentionKind::kGqa, IndexerKind::kNone, FfnKind::kMoe});
    LayerWeightBytes weights;
    weights.attention = 100'000'000;
    weights.feed_forward = 20'000'000;
    weights.experts = 400'000'000;
    weights.parameters = 200'000'000;
    weights.expert_parameters = 1'000'000'000;
    model.weights.layers.push_back(weights);
  }
  model.weights.head = 50'000'000;
  return model;
}

HostFacts SmallHost() {
  HostFacts host;
  host.cpu.cores = 8;
  host.dram_read = {{8, 40}};
  host.weight_rates = {{"Q4_K", 40, 0, 0.5}, {"Q8_0", 40, 0, 1}};
  GpuFacts gpu;
  gpu.index = 0;
  gpu.read_gb_per_s = 1000;
  gpu.bf16_tflops = 100;
  gpu.to_device_gb_per_s = 20;
  host.gpus.push_back(gpu);
  return host;
}

WorkerPlan Stage(const std::string& device, LayerRange layers, LayerRange resident) {
  WorkerPlan worker;
  worker.device = device;
  worker.layers = layers;
  worker.resident_experts = resident;
  return worker;
}

TEST(FloorTest, DecodeReadsEveryWeightThatItNeedsOnce) {
  DeploymentPlan plan;
  plan.workers = {Stage("cuda:0", {0, 2}, {0, 1})};
  WorkerPlan experts;
  experts.role = WorkerRole::kExperts;
  experts.device = "cpu";
  experts.expert_layers = {{1, 2}};
  plan.workers.push_back(experts);
  const auto floor = FloorOfDecode(SmallModel(), plan, SmallHost(), 1, 0);
  ASSERT_TRUE(floor.has_value());
  // Two layers, half of one's experts, the head; half of the other's experts from RAM.
  const double gpu = (2 * 0.12 + 0.2 + 0.05) / 1000, cpu = 0.2 / 40;
  EXPECT_NEAR(floor->tokens_per_s, 1 / (gpu + cpu), 1e-6);
  EXPECT_NEAR(floor->bytes, (2 * 0.12 + 0.2 + 0.05 + 0.2) * kGb, 1);
  EXPECT_EQ(floor->bound, "cpu DRAM");
  HostFacts unmeasured = SmallHost();
  unmeasured.gpus[0].read_gb_per_s = 0;
  EXPECT_FALSE(FloorOfDecode(SmallModel(), plan, unmeasured, 1, 0).has_value());
}

TEST(FloorTest, PrefillOnOneCardIsItsProducts) {
  DeploymentPlan plan;
  plan.max_tokens = 1024;
  plan.workers = {Stage("cuda:0", {0, 2}, {0, 2})};
  const auto floor = FloorOfPrefill(SmallModel(), plan, SmallHost(), 2048);
  ASSERT_TRUE(floor.has_value());
  // 2 layers x (0.2 G weights + half of 1 G of experts), at 100 TFLOP/s.
  EXPECT_NEAR(floor->tokens_per_s, 100e12 / (2 * 2 * 0.7e9), 1);
  EXPECT_EQ(floor->bound, "cuda:0 products");
}

TEST(FloorTest, PrefillFromRamIsItsCopiesOrTheProductsOfTheProcessor) {
  DeploymentPlan plan;
  plan.max_tokens = 1024;
  plan.streamed_rows = 100;
  plan.workers = {Stage("cuda:0", {0, 2}, {})};
  WorkerPlan experts;
  experts.role = WorkerRole::kExperts;
  experts.device = "cpu";
  experts.expert_layers = {{0, 2}};
  plan.workers.push_back(experts);
  auto floor = FloorOfPrefill(SmallModel(), plan, SmallHost(), 1024);
  ASSERT_TRUE(floor.has_value());
  EXPECT_NEAR(floor->tokens_per_s, 1024 / (0.8 / 20), 1);
  EXPECT_EQ(floor->bound, "cuda:0 link");
  // Too few rows for copies.
  floor = FloorOfPrefill(SmallModel(), plan, SmallHost(), 8);
  ASSERT_TRUE(floor.has_value());
  EXPECT_EQ(floor->bound, "cpu DRAM");
  plan.streamed_rows = 0;
  EXPECT_EQ(FloorOfPrefill(SmallModel(), plan, SmallHost(), 1024)->bound, "cpu products");
  plan.workers[1].address = "10.0.0.2:7070";
  EXPECT_FALSE(FloorOfPrefill(SmallModel(), plan, SmallHost(), 8).has_value());
}

// Two stages: the second ubatch is behind the first one, so the longer stage counts twice.
TEST(FloorTest, StagesWorkAtOnceOnDifferentUbatches) {
  DeploymentPlan plan;
  plan.max_tokens = 1024;
  plan.workers = {Stage("cuda:0", {0, 1}, {0, 1}), Stage("cpu", {1, 2}, {1, 2})};
  const auto floor = FloorOfPrefill(SmallModel(), plan, SmallHost(), 2048);
  ASSERT_TRUE(floor.has_value());
  const double work = 1024 * 2 * 0.7e9;
  EXPECT_NEAR(2048 / floor->tokens_per_s, work / 100e12 + 2 * work / 1e12, 1e-3);
  EXPECT_EQ(floor->bound, "cpu products");
}

}  // namespace
}  // namespace packtrain

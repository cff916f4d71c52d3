// The even plan: every layer has one stage, every layer's routed experts one owner, pins are kept.

#include "coordinator/placement/even_plan.h"

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace packtrain {
namespace {

using testing::HasSubstr;

class EvenPlanTest : public testing::Test {
 protected:
  EvenPlanTest() {
    config_.num_layers = 12;
    config_.hidden_dim = 64;
    config_.gqa = {.num_kv_heads = 2, .key_dim = 32, .value_dim = 32};
    config_.layers.assign(12, {});
    config_.layers[0].ffn = FfnKind::kDense;
  }

  absl::StatusOr<EvenPlan> Plan(const std::string& workers, const std::string& more = "") {
    const std::string text = absl::StrCat(
        "models:\n- name: m\n  path: m.gguf\n  context: 1024\n  slots: 4\n  workers:\n", workers,
        more);
    absl::StatusOr<Topology> topology = ParseTopology(text, "t.yaml");
    if (!topology.ok()) return topology.status();
    topology_ = *std::move(topology);
    return PlanEvenly({.topology = &topology_,
                       .model = &topology_.models[0],
                       .config = &config_,
                       .weight_bytes = 1000,
                       .memory_bytes = memory_bytes_});
  }

  static std::string Describe(const EvenPlan& plan) {
    std::string text;
    for (const WorkerPlan& worker : plan.plan.workers) {
      absl::StrAppend(&text, worker.name, ":");
      if (worker.role == WorkerRole::kStage) absl::StrAppend(&text, FormatLayers(worker.layers));
      if (worker.resident_experts.size() > 0) {
        absl::StrAppend(&text, "(", FormatLayers(worker.resident_experts), ")");
      }
      for (LayerRange range : worker.expert_layers) {
        absl::StrAppend(&text, " ", FormatLayers(range));
      }
      absl::StrAppend(&text, "; ");
    }
    return text;
  }

  ModelConfig config_;
  Topology topology_;
  uint64_t memory_bytes_ = uint64_t{8} << 30;
};

TEST_F(EvenPlanTest, StagesShareTheLayers) {
  const auto one = Plan("  - device: cpu\n");
  ASSERT_TRUE(one.ok()) << one.status();
  EXPECT_EQ(Describe(*one), "stage0:0-11(0-11); ");
  const auto five =
      Plan("  - device: cpu\n  - device: cpu\n  - device: cpu\n  - device: cpu\n  - device: cpu\n");
  ASSERT_TRUE(five.ok()) << five.status();
  EXPECT_EQ(Describe(*five),
            "stage0:0-1(0-1); stage1:2-3(2-3); stage2:4-6(4-6); stage3:7-8(7-8); "
            "stage4:9-11(9-11); ");
}

TEST_F(EvenPlanTest, AnExpertsWorkerTakesTheExpertsOfAllStages) {
  const auto plan =
      Plan("  - device: cpu\n  - device: cpu\n  - {device: cpu, role: experts, threads: 3}\n");
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(Describe(*plan), "stage0:0-5; stage1:6-11; experts0: 1-5 6-11; ");
  EXPECT_EQ(plan->plan.workers[2].threads, 3);
}

TEST_F(EvenPlanTest, AGpuTakesLargerUbatchesUnlessTold) {
  const std::string workers = "  - device: \"cuda:0\"\n  - {device: cpu, role: experts}\n";
  const auto cpu = Plan("  - device: cpu\n");
  const auto gpu = Plan(workers);
  const auto told = Plan(workers, "  ubatch: 64\n");
  ASSERT_TRUE(cpu.ok() && gpu.ok() && told.ok()) << told.status();
  EXPECT_EQ(cpu->plan.max_tokens, 512);
  EXPECT_EQ(gpu->plan.max_tokens, 2048);
  EXPECT_EQ(told->plan.max_tokens, 64);
}

TEST_F(EvenPlanTest, TwoExpertsWorkersShareThemAndPinsAreKept) {
  const auto even =
      Plan("  - device: cpu\n  - {device: cpu, role: experts}\n  - {device: cpu, role: experts}\n");
  ASSERT_TRUE(even.ok()) << even.status();
  EXPECT_EQ(Describe(*even), "stage0:0-11; experts0: 1-6; experts1: 7-11; ");
  const auto pinned = Plan(
      "  - {device: cpu, resident_experts: 4-5}\n  - {device: cpu, role: experts}\n"
      "  - {device: cpu, role: experts, layers: 0-2}\n");
  ASSERT_TRUE(pinned.ok()) << pinned.status();
  EXPECT_EQ(Describe(*pinned), "stage0:0-11(4-5); experts0: 3 6-11; experts1: 1-2; ");
}

TEST_F(EvenPlanTest, PinnedStagesStandWhereTheirLayersAre) {
  const auto plan = Plan(
      "  - {device: cpu, layers: 8-11}\n  - device: cpu\n  - {device: cpu, layers: 3-4}\n"
      "  - device: cpu\n");
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(Describe(*plan),
            "stage0:0-2(0-2); stage1:3-4(3-4); stage2:5-7(5-7); stage3:8-11(8-11); ");
}

TEST_F(EvenPlanTest, WhatCannotBeIsRefused) {
  EXPECT_THAT(
      std::string(Plan("  - {device: cpu, layers: 3-5}\n  - device: cpu\n").status().message()),
      HasSubstr("t.yaml:2: model \"m\": layers 6-11 belong to no stage"));
  EXPECT_THAT(
      std::string(Plan("  - {device: cpu, layers: 0-11}\n  - device: cpu\n").status().message()),
      HasSubstr("are too many; 0 are left"));
  EXPECT_THAT(std::string(Plan("  - {device: cpu, resident_experts: 0-11}\n"
                               "  - {device: cpu, role: experts}\n")
                              .status()
                              .message()),
              HasSubstr("t.yaml:8: model \"m\": no routed experts are left"));
  EXPECT_THAT(std::string(Plan("  - {device: cpu, resident_experts: 0-3}\n").status().message()),
              HasSubstr("the routed experts of layers 4-11 belong to nobody"));
}

TEST_F(EvenPlanTest, PagesAreForOneFullContextAndAPartOfTheOthers) {
  const auto plan = Plan("  - device: cpu\n");
  ASSERT_TRUE(plan.ok());
  EXPECT_EQ(plan->plan.num_pages, 4 * 16);
  EXPECT_EQ(plan->plan.num_snapshots, 0);
}

TEST_F(EvenPlanTest, WhatDoesNotFitIsRefusedWithTheFigures) {
  // A page takes 12 layers x 64 positions x 256 bytes; a context 16 pages: 3 MiB.
  memory_bytes_ = (uint64_t{1} << 30) + (4 << 20);
  const auto tight = Plan("  - device: cpu\n");
  ASSERT_TRUE(tight.ok()) << tight.status();
  EXPECT_EQ(tight->plan.num_pages, 21);
  memory_bytes_ = (uint64_t{1} << 30) + (2 << 20);
  const absl::Status status = Plan("  - device: cpu\n").status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()), HasSubstr("with a context of 1024 needs 1.0 GiB"));
}

TEST_F(EvenPlanTest, LinkPinsNameWorkers) {
  const auto plan = Plan("  - device: cpu\n  - device: cpu\n",
                         "links: [{between: [localhost/cpu, \"*\"], transport: grpc}]\n");
  ASSERT_TRUE(plan.ok()) << plan.status();
  ASSERT_EQ(plan->plan.links.size(), 2u);
  EXPECT_EQ(plan->plan.links[0].from, "stage0");
  EXPECT_EQ(plan->plan.links[0].to, "*");
  EXPECT_EQ(plan->plan.links[1].from, "stage1");
}

}  // namespace
}  // namespace packtrain

// What a user lists becomes the workers that are started. Method: topologies of the demo model (8
// layers, the first one dense), planned for a machine of given memory, down to the fleet's plan.

#include "coordinator/placement/deployment_plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "coordinator/placement/planner.h"
#include "coordinator/placement/topology_request.h"
#include "tests/support/placement_checks.h"

namespace packtrain {
namespace {

using testing::HasSubstr;

class DeploymentPlanTest : public testing::Test {
 protected:
  absl::StatusOr<DeploymentPlan> Plan(const std::string& workers, const std::string& more = "") {
    absl::StatusOr<Topology> topology =
        ParseTopology(absl::StrCat("models:\n- name: m\n  path: " PACKTRAIN_SOURCE_DIR
                                   "/deploy/demo/primary.gguf\n  context: 1024\n  slots: 4\n",
                                   workers.empty() ? "" : "  workers:\n", workers, more),
                      "t.yaml");
    if (!topology.ok()) return topology.status();
    absl::StatusOr<TopologyRequest> request =
        RequestFor(*topology, RigAround(*topology, TestHost("here", 4, memory_gib_, 20)));
    if (!request.ok()) return request.status();
    const absl::StatusOr<Placement> placement = PlanPlacement(request->request);
    if (!placement.ok()) return placement.status();
    EXPECT_EQ(PlanFault(request->request, *placement), "");
    return DeploymentPlanOf(*topology, topology->models[0], placement->deployments[0],
                            request->models[0]->config.hidden_dim);
  }

  static std::string Describe(const DeploymentPlan& plan) {
    std::string text;
    for (const WorkerPlan& worker : plan.workers) {
      absl::StrAppend(&text, worker.name, ":");
      if (worker.role == WorkerRole::kStage) absl::StrAppend(&text, FormatLayers(worker.layers));
      if (!worker.resident_experts.empty()) {
        absl::StrAppend(&text, "(", FormatLayers(worker.resident_experts), ")");
      }
      for (LayerRange range : worker.expert_layers) {
        absl::StrAppend(&text, " ", FormatLayers(range));
      }
      absl::StrAppend(&text, "; ");
    }
    return text;
  }

  double memory_gib_ = 8;
};

TEST_F(DeploymentPlanTest, WithoutWorkersAllIsPlanned) {
  const auto plan = Plan("");
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(Describe(*plan), "stage0:0-7(1-7); ");
  EXPECT_EQ(plan->workers[0].device, "cpu");
  EXPECT_EQ(plan->workers[0].threads, 4);
}

TEST_F(DeploymentPlanTest, StagesShareTheLayersAndTheCores) {
  const auto plan = Plan("  - device: cpu\n  - device: cpu\n");
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(Describe(*plan), "stage0:0-3(1-3); stage1:4-7(4-7); ");
  EXPECT_EQ(plan->workers[0].threads, 2);
}

TEST_F(DeploymentPlanTest, WorkersShareAGpuByTheMemoryThatEachHas) {
  const auto plan = Plan(
      "  - {device: cuda:0, memory_gib: 1}\n  - {device: cuda:0, memory_gib: 1}\n"
      "  - {device: cuda:0, memory_gib: 1}\n",
      "links: [{between: [localhost/cuda:0, localhost/cuda:0], transport: grpc}]\n");
  ASSERT_TRUE(plan.ok()) << plan.status();
  ASSERT_EQ(plan->workers.size(), 3u);
  for (const WorkerPlan& worker : plan->workers) EXPECT_EQ(worker.device, "cuda:0");
  EXPECT_EQ(plan->workers[2].layers.last, 8);
  EXPECT_EQ(plan->links.size(), 6u);
}

TEST_F(DeploymentPlanTest, AWorkerThatSharesAGpuKeepsToItsPart) {
  const auto plan =
      Plan("  - {device: cuda:0, memory_gib: 0.5}\n  - {device: cuda:0, memory_gib: 1}\n");
  EXPECT_THAT(std::string(plan.status().message()), HasSubstr("on 2 stage devices"));
}

TEST_F(DeploymentPlanTest, AnExpertsWorkerTakesTheExpertsOfAllStages) {
  const auto plan =
      Plan("  - device: cpu\n  - device: cpu\n  - {device: cpu, role: experts, threads: 3}\n");
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(Describe(*plan), "stage0:0-2; stage1:3-7; experts0: 1-7; ");
  EXPECT_EQ(plan->workers[2].threads, 3);
}

TEST_F(DeploymentPlanTest, PinsAreKeptAndTheRestIsPlannedAroundThem) {
  const auto experts = Plan(
      "  - {device: cpu, resident_experts: 4-5}\n  - {device: cpu, role: experts}\n"
      "  - {device: cpu, role: experts, layers: 1-2}\n");
  ASSERT_TRUE(experts.ok()) << experts.status();
  EXPECT_EQ(Describe(*experts), "stage0:0-7(4-5); experts0: 3 6-7; experts1: 1-2; ");
  const auto stages = Plan(
      "  - {device: cpu, layers: 6-7}\n  - device: cpu\n  - {device: cpu, layers: 2-3}\n"
      "  - {device: cpu, threads: 1}\n");
  ASSERT_TRUE(stages.ok()) << stages.status();
  EXPECT_EQ(Describe(*stages),
            "stage0:0-1(1); stage1:2-3(2-3); stage2:4-5(4-5); stage3:6-7(6-7); ");
}

TEST_F(DeploymentPlanTest, AWorkerThatRunsAlreadyKeepsItsAddressAndItsThreads) {
  const auto plan = Plan(
      "  - {device: box2/cpu, layers: 4-7, address: \"10.0.0.2:7000\"}\n"
      "  - {device: box1/cpu, layers: 0-3}\n",
      "hosts: [{name: box1}, {name: box2}]\n");
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(plan->workers[0].address, "");
  EXPECT_EQ(plan->workers[0].threads, 4);
  EXPECT_EQ(plan->workers[1].address, "10.0.0.2:7000");
  EXPECT_EQ(plan->workers[1].threads, 0);
}

TEST_F(DeploymentPlanTest, AGpuThatNobodyProbedIsUsedAsListed) {
  const auto plan = Plan("  - device: cuda:1\n");
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(Describe(*plan), "stage0:0-7(1-7); ");
  EXPECT_EQ(plan->workers[0].device, "cuda:1");
}

TEST_F(DeploymentPlanTest, WhatCannotBeIsRefusedWithItsPlace) {
  EXPECT_THAT(
      std::string(Plan("  - {device: cpu, layers: 3-5}\n  - device: cpu\n").status().message()),
      HasSubstr("t.yaml:2: model \"m\": layers 6-7 belong to no stage"));
  EXPECT_THAT(
      std::string(Plan("  - {device: cpu, layers: 0-7}\n  - device: cpu\n").status().message()),
      HasSubstr("are too many; 0 layers are left"));
  EXPECT_THAT(
      std::string(Plan("  - {device: cpu, resident_experts: 0-3}\n").status().message()),
      HasSubstr("t.yaml:2: model \"m\": the routed experts of layers 4-7 belong to nobody"));
  EXPECT_THAT(std::string(Plan("  - {device: cpu, role: experts, layers: 0-3}\n  - device: cpu\n")
                              .status()
                              .message()),
              HasSubstr("t.yaml:2: model \"m\": here/cpu: layer 0 has no routed experts"));
}

TEST_F(DeploymentPlanTest, PagesAreForOneFullContextAndAsManyOfTheOthersAsFit) {
  const auto roomy = Plan("  - device: cpu\n");
  ASSERT_TRUE(roomy.ok()) << roomy.status();
  EXPECT_EQ(roomy->num_pages, 4 * 16);
  // 3 GiB and 1 % are kept, the process takes 0.03 and a little more.
  int partly = 0;
  for (memory_gib_ = 3.05; memory_gib_ < 3.15; memory_gib_ += 0.001) {
    const auto tight = Plan("  - device: cpu\n");
    if (!tight.ok()) {
      EXPECT_EQ(tight.status().code(), absl::StatusCode::kResourceExhausted);
      EXPECT_THAT(std::string(tight.status().message()), HasSubstr("m does not fit"));
      continue;
    }
    EXPECT_GE(tight->num_pages, 16 + 3);
    partly += tight->num_pages > 16 + 3 && tight->num_pages < 4 * 16 ? 1 : 0;
  }
  EXPECT_GT(partly, 0);
}

TEST_F(DeploymentPlanTest, LinkPinsNameWorkers) {
  const auto plan = Plan("  - device: cpu\n  - device: cpu\n",
                         "links: [{between: [localhost/cpu, \"*\"], transport: grpc}]\n");
  ASSERT_TRUE(plan.ok()) << plan.status();
  ASSERT_EQ(plan->links.size(), 2u);
  EXPECT_EQ(plan->links[0].from, "stage0");
  EXPECT_EQ(plan->links[0].to, "*");
  EXPECT_EQ(plan->links[1].from, "stage1");
}

}  // namespace
}  // namespace packtrain

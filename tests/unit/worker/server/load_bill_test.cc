// The worker's bill is the planner's: for the demo model in several forms, what a worker counts
// from the Load message equals what the plan says of it; what no host has is refused.

#include "worker/server/load_bill.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "common/weights/gguf.h"

namespace packtrain {
namespace {

using testing::HasSubstr;

class LoadBillTest : public testing::Test {
 protected:
  LoadBillTest() {
    const auto file = GgufFile::Open(PACKTRAIN_SOURCE_DIR "/deploy/demo/primary.gguf");
    EXPECT_TRUE(file.ok()) << file.status();
    absl::StatusOr<ModelFacts> facts = ReadModelFacts(**file);
    EXPECT_TRUE(facts.ok()) << facts.status();
    model_ = *std::move(facts);
    stage_.device = "cpu";
    stage_.stage = {.first_layer = 2,
                    .last_layer = 6,
                    .kv_cache = KvCacheType::kQ8_0,
                    .num_pages = 40,
                    .num_slots = 3,
                    .max_tokens = 128,
                    .resident_first = 4,
                    .resident_last = 6};
  }

  ModelFacts model_;
  LoadRequest stage_;
  const DeploymentShape shape_ = {.kv_cache = KvCacheType::kQ8_0,
                                  .num_pages = 40,
                                  .num_slots = 3,
                                  .num_snapshots = 0,
                                  .max_tokens = 128};
};

TEST_F(LoadBillTest, AStageIsBilledAsThePlannerDoes) {
  const StageDuties duties = {.receives = true, .sends = true, .asks_experts = true};
  const absl::StatusOr<MemoryBill> bill = HostBillOf(stage_, model_);
  ASSERT_TRUE(bill.ok()) << bill.status();
  EXPECT_EQ(bill->bytes, StageBill(model_, shape_, duties, 2, 6, 4, 6).bytes);
  stage_.device = "cuda:0";
  const absl::StatusOr<MemoryBill> beside = HostBillOf(stage_, model_);
  ASSERT_TRUE(beside.ok()) << beside.status();
  EXPECT_EQ(
      beside->bytes,
      StageHostBill(
          model_, shape_,
          {.device = DeviceKind::kCuda, .receives = true, .sends = true, .asks_experts = true})
          .bytes);
}

TEST_F(LoadBillTest, AnExpertsWorkerIsBilledForItsLayers) {
  LoadRequest request;
  request.device = "cpu";
  request.experts = {.layers = {{1, 3}, {5, 6}}, .max_tokens = 128};
  const absl::StatusOr<MemoryBill> bill = HostBillOf(request, model_);
  ASSERT_TRUE(bill.ok()) << bill.status();
  EXPECT_EQ((*bill)[BillItem::kExperts], model_.weights.layers[1].experts +
                                             model_.weights.layers[2].experts +
                                             model_.weights.layers[5].experts);
}

TEST_F(LoadBillTest, WhatNoHostHasIsRefusedWithTheBill) {
  EXPECT_TRUE(CheckHostBill(stage_, model_).ok());
  stage_.stage->num_pages = 1 << 30;
  const absl::Status status = CheckHostBill(stage_, model_);
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()), HasSubstr("kv cache"));
}

TEST_F(LoadBillTest, LayersThatTheModelLacksAreRefused) {
  stage_.stage->last_layer = 99;
  EXPECT_EQ(CheckHostBill(stage_, model_).code(), absl::StatusCode::kInvalidArgument);
  stage_.stage->first_layer = -1;
  EXPECT_EQ(CheckHostBill(stage_, model_).code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace packtrain

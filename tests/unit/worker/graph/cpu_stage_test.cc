// Aim: a stage refuses what it cannot serve or what reaches outside its memory, and stays usable.
// That it computes the right thing is the business of tests/golden.

#include "worker/graph/cpu_stage.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/support/model_runner.h"

namespace packtrain {
namespace {

using testing::HasSubstr;

class BrokenExperts : public ExpertsClient {
 public:
  absl::Status Post(const ExpertsRequest&) override { return absl::OkStatus(); }
  absl::Status Await(float*) override { return absl::UnavailableError("the experts are gone"); }
};

class CpuStageTest : public testing::Test {
 protected:
  CpuStageTest() : model_(PACKTRAIN_BINARY_DIR "/golden_models/glm52-f32.gguf") {
    spec_.last_layer = 3;
    spec_.embeds = true;
    spec_.num_pages = 2;
    spec_.num_slots = 1;
    spec_.max_tokens = 8;
    spec_.threads = 1;
    spec_.resident_last = 3;
    sequence_.rows = 3;
    sequence_.tokens = std::span(tokens_).first(3);
    sequence_.pages = pages_;
  }

  absl::StatusOr<std::unique_ptr<CpuStage>> Create(ExpertsClient* experts = nullptr) {
    return CpuStage::Create(model_.config, *model_.tensors, *model_.weights, spec_,
                            {.kernels = *SelectCpuKernels("scalar"), .experts = experts});
  }
  absl::Status Run(CpuStage* stage, const Bundle& in = {}) {
    Ubatch ubatch;
    ubatch.sequences = {&sequence_, 1};
    ubatch.rows = sequence_.rows;
    return stage->Run(ubatch, in, &out_);
  }
  void ExpectRefused(CpuStage* stage, const std::string& what) {
    const absl::Status status = Run(stage);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << what;
    EXPECT_THAT(std::string(status.message()), HasSubstr(what));
  }

  TestModel model_;
  StageSpec spec_;
  std::vector<TokenId> tokens_ = {1, 2, 3, 4, 5, 6, 7, 8, 9};
  std::vector<int32_t> pages_ = {1, 0};
  UbatchSequence sequence_;
  Bundle out_;
};

TEST_F(CpuStageTest, LayerRangesOutsideTheModelAreRefused) {
  spec_.last_layer = 8;
  EXPECT_THAT(std::string(Create().status().message()), HasSubstr("[0, 8) of a model of 7 layers"));
  spec_.last_layer = 0;
  EXPECT_FALSE(Create().ok());
}

TEST_F(CpuStageTest, ExpertsThatNobodyServesAreRefused) {
  spec_.resident_last = 0;
  const absl::Status status = Create().status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), HasSubstr("layer 2"));
}

TEST_F(CpuStageTest, WhatReachesOutsideIsRefusedByName) {
  auto stage = std::move(Create()).value();
  const UbatchSequence good = sequence_;
  sequence_.slot = 1;
  ExpectRefused(stage.get(), "slot 1");
  sequence_ = good;
  sequence_.start = 126;
  ExpectRefused(stage.get(), "position without a page 128");
  sequence_ = good;
  sequence_.start = -1;
  ExpectRefused(stage.get(), "start -1");
  sequence_ = good;
  sequence_.rows = 9;
  sequence_.tokens = tokens_;
  ExpectRefused(stage.get(), "at most 8");
  sequence_ = good;
  sequence_.rows = 0;
  sequence_.tokens = {};
  ExpectRefused(stage.get(), "0 rows");
  sequence_ = good;
  sequence_.rows = 4;
  sequence_.tokens = std::span(tokens_).first(3);
  ExpectRefused(stage.get(), "3 token ids for 4 rows");
  sequence_ = good;
  tokens_[1] = 768;
  ExpectRefused(stage.get(), "token id 768, allowed 0 to 767");
  tokens_[1] = -1;
  ExpectRefused(stage.get(), "token id -1");
  tokens_[1] = 2;
  pages_[0] = 2;
  ExpectRefused(stage.get(), "page 2, allowed 0 to 1");
  pages_[0] = 1;
  sequence_.save_snapshot = 0;
  ExpectRefused(stage.get(), "snapshot 0");
  sequence_ = good;
  EXPECT_TRUE(Run(stage.get()).ok());
}

TEST_F(CpuStageTest, ASlotMayOccurOnceInAUbatch) {
  auto stage = std::move(Create()).value();
  const UbatchSequence twice[] = {sequence_, sequence_};
  Ubatch ubatch;
  ubatch.sequences = twice;
  ubatch.rows = 2 * sequence_.rows;
  EXPECT_THAT(std::string(stage->Run(ubatch, {}, &out_).message()),
              HasSubstr("slot 0 occurs twice"));
}

TEST_F(CpuStageTest, ABundleOfAnotherShapeIsRefused) {
  spec_.first_layer = 2;  // a layer that shares the choice of layer 1
  spec_.embeds = false;
  auto stage = std::move(Create()).value();
  Bundle in;
  EXPECT_THAT(std::string(Run(stage.get(), in).message()), HasSubstr("no tensor hidden"));
  in.Shape(0, "hidden", ElementType::kF32, 3, 127);
  EXPECT_THAT(std::string(Run(stage.get(), in).message()), HasSubstr("3x127"));
  in.Shape(0, "hidden", ElementType::kF32, 3, 128);
  EXPECT_THAT(std::string(Run(stage.get(), in).message()), HasSubstr("no tensor selection"));
  BundleTensor* selection = in.Shape(1, "selection", ElementType::kI32, 3, 16);
  // Positions that are not visible are left out.
  for (size_t i = 0; i < 48; ++i) selection->i32()[i] = i % 2 == 0 ? 1 << 30 : -7;
  EXPECT_TRUE(Run(stage.get(), in).ok());
}

TEST_F(CpuStageTest, ASelectionFromOutsideIsBoundToWhatIsVisible) {
  spec_.first_layer = 2;
  spec_.embeds = false;
  auto stage = std::move(Create()).value();
  Bundle in;
  in.Shape(0, "hidden", ElementType::kF32, 1, 128);
  BundleTensor* selection = in.Shape(1, "selection", ElementType::kI32, 1, 16);
  sequence_.rows = 1;
  sequence_.tokens = std::span(tokens_).first(1);
  sequence_.start = 40;
  for (size_t i = 0; i < 16; ++i) selection->i32()[i] = static_cast<int32_t>(41 + i);
  EXPECT_EQ(Run(stage.get(), in).code(), absl::StatusCode::kInvalidArgument);
  selection->i32()[0] = 40;
  EXPECT_TRUE(Run(stage.get(), in).ok());
  for (float value : std::span(out_.Find("hidden")->f32(), 128)) EXPECT_EQ(value, value);
}

TEST_F(CpuStageTest, FailedExpertsFailTheStepOnly) {
  BrokenExperts experts;
  spec_.resident_last = 0;
  auto stage = std::move(Create(&experts)).value();
  EXPECT_EQ(Run(stage.get()).code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(Run(stage.get()).code(), absl::StatusCode::kUnavailable);
}

TEST_F(CpuStageTest, MemoryIsAccountedFor) {
  const auto stage = std::move(Create()).value();
  uint64_t weights = 0;
  const Shard shard = {.last_layer = 3, .embeds = true, .last_experts = 3};
  for (const ModelTensor& t : ShardTensors(model_.config, *model_.tensors, shard)) {
    weights += t.tensor->bytes;
  }
  EXPECT_EQ(stage->memory().weights, weights);
  size_t per_position = 0;
  for (size_t i = 0; i < 3; ++i) {
    per_position += KvBytesPerPosition(model_.config, model_.config.layers[i], KvCacheType::kF16);
  }
  EXPECT_EQ(stage->memory().kv, per_position * 2 * kPagePositions);
}

}  // namespace
}  // namespace packtrain

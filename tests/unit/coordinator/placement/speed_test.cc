// Predicted speeds against sums by hand, and the choice of the ubatch that follows from them.

#include "coordinator/placement/speed.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "coordinator/placement/layer_times.h"
#include "coordinator/placement/planner.h"
#include "coordinator/placement/rates.h"
#include "tests/support/placement_checks.h"

namespace packtrain {
namespace {

Rig OneBox(std::vector<GpuFacts> gpus, double memory_gib) {
  Rig rig;
  rig.hosts = {TestHost("box", 12, memory_gib, 80)};
  rig.hosts[0].gpus = std::move(gpus);
  return rig;
}

DeploymentWish WishFor(const ModelFacts& model) {
  DeploymentWish wish;
  wish.name = "model";
  wish.model = &model;
  wish.context = 32768;
  return wish;
}

TEST(SpeedTest, APromptOnOneStageTakesItsUbatchesOneAfterTheOther) {
  const ModelFacts model = GlmLikeModel(6, false, 2.4);
  const Rig rig = OneBox({TestGpu(0, 24, 936, 12)}, 64);
  const DeploymentWish wish = WishFor(model);
  const Problem problem = *BuildProblem(rig, wish, {}, 1024);
  const std::vector<StageChoice> stages = {{0, {0, 6}, {3, 6}, {}}};
  double seconds = kPromptSeconds + 2500 * kPromptRowSeconds + problem.stages[0].head_seconds;
  for (const PromptChunk& chunk : {PromptChunk{1024, 0}, {1024, 1024}, {452, 2048}}) {
    for (int l = 0; l < 6; ++l) {
      seconds += OwnPrefillSeconds(problem, problem.stages[0], l, chunk) +
                 ExpertsPrefillSeconds(problem, problem.stages[0].experts, l, chunk.rows);
    }
  }
  EXPECT_NEAR(PromptSeconds(problem, stages, 2500), seconds, 1e-9 * seconds);
}

// All experts are copied once for a ubatch, whatever its length.
TEST(SpeedTest, StreamedExpertsCostTheLinkOncePerUbatch) {
  const ModelFacts model = GlmLikeModel(6, false, 2.4);
  const Rig rig = OneBox({TestGpu(0, 24, 936, 3)}, 64);
  const DeploymentWish wish = WishFor(model);
  const std::vector<StageChoice> stages = {{0, {0, 6}, {3, 3}, {{0, {3, 6}}}}};
  const double copies = 3 * static_cast<double>(model.weights.layers[3].experts) / 3e9;
  for (const int ubatch : {1024, 2048, 4096}) {
    const Problem problem = *BuildProblem(rig, wish, {}, ubatch);
    ASSERT_TRUE(problem.shape.Streams(ubatch));
    const double seconds = PromptSeconds(problem, stages, 4096);
    EXPECT_NEAR(seconds, 4096 / ubatch * copies, 0.2 * seconds) << ubatch;
  }
}

TEST(SpeedTest, ExpertsAreStreamedFromWhereThatIsSooner) {
  const ModelFacts model = GlmLikeModel(6, false, 2.4);
  const DeploymentWish wish = WishFor(model);
  int before = 0;
  for (const double link : {40.0, 12.0, 6.0}) {
    const Rig rig = OneBox({TestGpu(0, 24, 936, link)}, 64);
    const Problem problem = *BuildProblem(rig, wish, {}, 2048);
    const double copies = 3 * static_cast<double>(model.weights.layers[3].experts) / (link * 1e9);
    const auto computed = [&](int rows) {
      return 3 * ExpertsPrefillSeconds(problem, problem.experts[0].experts, 3, rows);
    };
    const int rows = problem.shape.streamed_rows;
    EXPECT_GT(rows, before) << link;
    EXPECT_GE(computed(rows), copies) << link;
    EXPECT_LT(computed(rows - 1), copies) << link;
    before = rows;
    EXPECT_EQ(BuildProblem(rig, wish, {}, rows - 1)->shape.streamed_rows, 0) << link;
  }
  const Rig riser = OneBox({TestGpu(0, 24, 936, 1)}, 64);
  EXPECT_EQ(BuildProblem(riser, wish, {}, 8192)->shape.streamed_rows, 0) << "an x1 link";
}

// Stages work at once on different ubatches, so two of them need no more than the half and what
// fills the pipeline; experts workers and DRAM that they share are there only once.
TEST(SpeedTest, StagesWorkAtOnceAndShareTheExpertsWorker) {
  const ModelFacts model = GlmLikeModel(11, false, 2.4);
  const Rig rig = OneBox({TestGpu(0, 48, 936, 6), TestGpu(1, 48, 936, 6)}, 64);
  const DeploymentWish wish = WishFor(model);
  const Problem problem = *BuildProblem(rig, wish, {}, 128);
  const int prompt = 128 * 32;
  const double one = PromptSeconds(problem, {{0, {0, 11}, {3, 11}, {}}}, prompt);
  const double two =
      PromptSeconds(problem, {{0, {0, 7}, {3, 7}, {}}, {1, {7, 11}, {7, 11}, {}}}, prompt);
  EXPECT_LT(two, 0.75 * one);
  EXPECT_GT(two, 0.5 * one);
  // Too few rows for copies: the processor computes all experts.
  double worker = 0;
  for (int l = 3; l < 11; ++l) {
    worker += 32 * ExpertsPrefillSeconds(problem, problem.experts[0].experts, l, 128);
  }
  const double away = PromptSeconds(
      problem, {{0, {0, 7}, {3, 3}, {{0, {3, 7}}}}, {1, {7, 11}, {7, 7}, {{0, {7, 11}}}}}, prompt);
  EXPECT_GE(away, worker);
  EXPECT_LT(away, 1.3 * worker);
}

// Where experts lie in RAM behind a slow link, long ubatches are worth more than a few resident
// experts, and no other length would serve a request much sooner.
TEST(SpeedTest, TheUbatchThatServesTheWholeRequestSoonestIsTaken) {
  const ModelFacts model = GlmLikeModel(20, false, 2.4);
  const DeploymentWish wish = WishFor(model);
  for (const double link : {6.0, 12.0, 50.0}) {
    const Rig rig = OneBox({TestGpu(0, 24, 936, link)}, 96);
    const auto solution = Solve(rig, wish, {});
    ASSERT_TRUE(solution.ok() && solution->has_value());
    const double chosen = RequestSeconds((*solution)->problem, (*solution)->stages);
    EXPECT_GE((*solution)->problem.shape.max_tokens, 512) << link;
    for (const int ubatch : {64, 512, 2048, 8192}) {
      DeploymentWish fixed = wish;
      fixed.max_tokens = ubatch;
      const auto other = Solve(rig, fixed, {});
      ASSERT_TRUE(other.ok());
      if (!other->has_value()) continue;
      EXPECT_LE(0.75 * chosen, RequestSeconds((*other)->problem, (*other)->stages) * (1 + 1e-9));
    }
  }
}

// Kernels of a decode step read experts' down matrices at another rate than those before them.
TEST(SpeedTest, PickedExpertsAreReadAtTheRatesOfTheirTypesAndMatrices) {
  ModelFacts model = GlmLikeModel(6, false, 2.4);
  LayerWeightBytes& layer = model.weights.layers[3];
  layer.shared_expert = 0;
  layer.expert_types = {{TensorType::kIQ2_XS, layer.experts / 4 * 3}};
  layer.expert_down_types = {{TensorType::kIQ3_XXS, layer.experts / 4}};
  Rig rig = OneBox({TestGpu(0, 24, 936, 12)}, 64);
  rig.hosts[0].gpus[0].weight_rates = {
      {.type = "IQ2_XS", .experts_gb_per_s = 300, .experts_down_gb_per_s = 1},
      {.type = "IQ3_XXS", .experts_gb_per_s = 1, .experts_down_gb_per_s = 200}};
  const DeploymentWish wish = WishFor(model);
  const Problem problem = *BuildProblem(rig, wish, {}, 1024);
  const double picked = static_cast<double>(layer.experts) * 8 / 256;
  const double seconds = (picked * 0.75 / 300e9 + picked * 0.25 / 200e9) * kGraphGaps;
  EXPECT_NEAR(ResidentDecodeSeconds(problem, problem.stages[0], 3), seconds, 1e-6 * seconds);
}

// The ring is filled while the layers in front are computed; the rest of the copies are waited for.
TEST(SpeedTest, CopiesOfExpertsRunAheadAsFarAsTheRingAllows) {
  const ModelFacts model = GlmLikeModel(6, false, 2.4);
  const Rig rig = OneBox({TestGpu(0, 24, 936, 12)}, 64);
  const DeploymentWish wish = WishFor(model);
  const Problem problem = *BuildProblem(rig, wish, {}, 1024);
  ASSERT_TRUE(problem.shape.Streams(1024));
  ASSERT_GT(problem.ring_bytes, 0);
  const StageChoice last = {0, {0, 6}, {3, 5}, {{0, {5, 6}}}};
  const double before = PrefillSeconds(problem, {0, {0, 5}, {3, 5}, {}});
  const double copies = static_cast<double>(model.weights.layers[5].experts) / 12e9;
  EXPECT_NEAR(PrefillSeconds(problem, last),
              before + (copies - std::min(before, problem.ring_bytes / 12e9)) * kStreamedWaits,
              1e-6);
}

TEST(SpeedTest, AskedDepthsAndPromptsWithinTheContextAreTold) {
  const ModelFacts model = GlmLikeModel(6, false, 2.4);
  const Rig rig = OneBox({TestGpu(0, 24, 936, 12)}, 64);
  DeploymentWish wish = WishFor(model);
  wish.depths = {100, kDepth, 30000, 40000};
  wish.prompts = {64, kPrompt, 40000};
  const auto solution = Solve(rig, wish, {});
  ASSERT_TRUE(solution.ok() && solution->has_value());
  const SpeedPrediction speed = Predict((*solution)->problem, (*solution)->stages);
  ASSERT_EQ(speed.decode.size(), 3u);
  EXPECT_NEAR(speed.decode[1].tokens_per_s, speed.decode_tokens_per_s, 1e-9);
  EXPECT_GT(speed.decode[0].tokens_per_s, speed.decode[1].tokens_per_s);
  EXPECT_GT(speed.decode[1].tokens_per_s, speed.decode[2].tokens_per_s);
  ASSERT_EQ(speed.prefill.size(), 2u);
  EXPECT_NEAR(speed.prefill[1].tokens_per_s, speed.prefill_tokens_per_s, 1e-9);
}

}  // namespace
}  // namespace packtrain

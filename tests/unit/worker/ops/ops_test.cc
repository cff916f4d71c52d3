// Aim: small ops against formulas in double, written another way.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "worker/ops/delta_net.h"
#include "worker/ops/indexer.h"
#include "worker/ops/philox.h"
#include "worker/ops/rope.h"
#include "worker/ops/router.h"
#include "worker/ops/vector_math.h"

namespace packtrain {
namespace {

// Uniform in [-1, 1).
std::vector<float> Random(size_t n, uint32_t seed) {
  std::vector<float> values(n);
  for (size_t i = 0; i < n; ++i) {
    values[i] =
        static_cast<float>(Philox4x32({static_cast<uint32_t>(i), seed, 0, 0}, 9)[0]) * 0x1p-31F - 1;
  }
  return values;
}

TEST(VectorMathTest, DotIsTheSumOfProductsAtEveryLength) {
  for (size_t n = 0; n < 70; ++n) {
    const std::vector<float> a = Random(n, 1), b = Random(n, 2);
    double sum = 0, size = 0;
    for (size_t i = 0; i < n; ++i) {
      sum += double{a[i]} * b[i];
      size += std::abs(double{a[i]} * b[i]);
    }
    // Each of at most n additions rounds by half an ulp of the running sum.
    EXPECT_NEAR(Dot(a.data(), b.data(), n), sum,
                (size + 1e-30) * static_cast<double>(n + 1) * 0x1p-24);
  }
}

TEST(VectorMathTest, LayerNormCentresAndScales) {
  const std::vector<float> x = Random(40, 3), ones(40, 1.0F), zeros(40, 0.0F);
  std::vector<float> y(40);
  LayerNorm(x.data(), ones.data(), zeros.data(), 0.0F, 40, y.data());
  EXPECT_NEAR(Dot(y.data(), y.data(), 40) / 40, 1.0, 1e-5);
  EXPECT_NEAR(Dot(y.data(), ones.data(), 40), 0.0, 1e-4);
}

TEST(RopeTest, RotatesPairsByPositionTimesFrequency) {
  const RopeConfig config = {.dims = 8, .base = 10000};
  Rope rope(config);
  const std::vector<int32_t> positions = {0, 5, 1000003};
  rope.SetPositions(positions);
  for (RopeKind kind : {RopeKind::kNorm, RopeKind::kNeox}) {
    for (size_t row = 0; row < positions.size(); ++row) {
      const std::vector<float> x = Random(8, 4);
      std::vector<float> y = x;
      rope.Apply(kind, row, y.data());
      for (size_t i = 0; i < 4; ++i) {
        const size_t a = kind == RopeKind::kNorm ? 2 * i : i;
        const size_t b = kind == RopeKind::kNorm ? 2 * i + 1 : i + 4;
        const double angle = positions[row] * std::pow(10000.0, -2.0 * static_cast<double>(i) / 8);
        EXPECT_NEAR(y[a], x[a] * std::cos(angle) - x[b] * std::sin(angle), 1e-6);
        EXPECT_NEAR(y[b], x[a] * std::sin(angle) + x[b] * std::cos(angle), 1e-6);
      }
    }
  }
}

TEST(RopeTest, LinearScalingSlowsAndYarnKeepsTheFastPairs) {
  const auto cosine = [](const RopeConfig& config, size_t pair) {
    Rope rope(config);
    const int32_t position = 3;
    rope.SetPositions({&position, 1});
    std::vector<float> x(64, 0.0F);
    x[2 * pair] = 1;
    rope.Apply(RopeKind::kNorm, 0, x.data());
    return std::acos(std::min(1.0F, x[2 * pair])) / 3;  // its frequency
  };
  RopeConfig plain = {.dims = 64, .base = 10000};
  RopeConfig linear = plain;
  linear.factor = 4;
  EXPECT_NEAR(cosine(linear, 0), cosine(plain, 0) / 4, 1e-4);
  RopeConfig yarn = linear;
  yarn.yarn = true;
  yarn.original_context = 4096;
  EXPECT_NEAR(cosine(yarn, 0), cosine(plain, 0), 1e-4) << "the fastest pair keeps its speed";
  EXPECT_NEAR(cosine(yarn, 24), cosine(plain, 24) / 4, 1e-4) << "a slow one is slowed";
}

TEST(RouterTest, BiasChoosesButDoesNotWeigh) {
  MoeConfig moe = {.num_experts = 4,
                   .top_k = 2,
                   .gating = GatingKind::kSigmoid,
                   .normalise = true,
                   .scale = 2.5F};
  std::vector<float> logits = {0.0F, 1.0F, -1.0F, 0.5F};
  const std::vector<float> bias = {0, 0, 10, 0};
  int32_t ids[2];
  float weights[2], scratch[5];
  Route(moe, logits.data(), bias.data(), ids, weights, scratch);
  EXPECT_EQ(ids[0], 2);
  EXPECT_EQ(ids[1], 1);
  const double s1 = 1 / (1 + std::exp(-1.0)), s2 = 1 / (1 + std::exp(1.0));
  EXPECT_NEAR(weights[0], 2.5 * s2 / (s1 + s2), 1e-6);
  EXPECT_NEAR(weights[1], 2.5 * s1 / (s1 + s2), 1e-6);
}

TEST(RouterTest, TiesGoToTheLowerExpertAndGroupsBound) {
  MoeConfig moe = {.num_experts = 6, .top_k = 3, .gating = GatingKind::kSoftmax};
  std::vector<float> logits(6, 1.0F);
  int32_t ids[3];
  float weights[3], scratch[9];
  Route(moe, logits.data(), nullptr, ids, weights, scratch);
  EXPECT_EQ(std::vector<int32_t>(ids, ids + 3), (std::vector<int32_t>{0, 1, 2}));
  EXPECT_NEAR(weights[0], 1.0 / 6, 1e-7);

  moe.num_groups = 3;
  moe.groups_used = 2;
  logits = {5, 0, 3, 3, 4, 4};  // groups count 5+0, 3+3, 4+4 before the softmax; it keeps the order
  moe.gating = GatingKind::kSigmoid;
  Route(moe, logits.data(), nullptr, ids, weights, scratch);
  // sigmoid: group 0 counts 0.993 + 0.5, group 1 0.953 * 2, group 2 0.982 * 2.
  EXPECT_EQ(std::vector<int32_t>(ids, ids + 3), (std::vector<int32_t>{4, 5, 2}));
}

TEST(RouterTest, NotANumberStillPicksRealExperts) {
  MoeConfig moe = {.num_experts = 4, .top_k = 2, .gating = GatingKind::kSoftmax, .normalise = true};
  std::vector<float> logits(4, NAN);
  int32_t ids[2];
  float weights[2], scratch[5];
  Route(moe, logits.data(), nullptr, ids, weights, scratch);
  for (int32_t id : ids) EXPECT_TRUE(id >= 0 && id < 4);
}

TEST(IndexerTest, SelectTopDropsTheSmallestAndBreaksTiesLow) {
  std::vector<int32_t> chosen(4);
  std::vector<float> scratch(5);
  const std::vector<float> scores = {0.5F, 2.0F, 0.5F, -1.0F, 0.5F};
  ASSERT_EQ(SelectTop(scores, 4, scratch.data(), chosen.data()), 4);
  EXPECT_EQ(chosen, (std::vector<int32_t>{0, 1, 2, 4}));
  ASSERT_EQ(SelectTop(scores, 2, scratch.data(), chosen.data()), 2);
  EXPECT_EQ(chosen[0], 0);
  EXPECT_EQ(chosen[1], 1);
  std::vector<int32_t> all(9);
  EXPECT_EQ(SelectTop(scores, 9, scratch.data(), all.data()), 5);
}

TEST(DeltaNetTest, ConvolutionCarriesItsHistoryOverChunks) {
  constexpr size_t kChannels = 6, kKernel = 4, kRows = 9;
  const VectorOps& ops = *SelectCpuKernels("").value()->vector;
  const std::vector<float> u = Random(kRows * kChannels, 5), taps = Random(kChannels * kKernel, 6);
  for (size_t chunk : {size_t{1}, size_t{2}, kRows}) {
    std::vector<float> history((kKernel - 1) * kChannels, 0.0F), y(kRows * kChannels);
    for (size_t first = 0; first < kRows; first += chunk) {
      const size_t rows = std::min(chunk, kRows - first);
      CausalConv(ops, u.data() + first * kChannels, rows, kChannels, kKernel, taps.data(), 0,
                 kChannels, history.data(), y.data() + first * kChannels);
    }
    for (size_t t = 0; t < kRows; ++t) {
      for (size_t c = 0; c < kChannels; ++c) {
        double sum = 0;
        for (size_t j = 0; j < kKernel; ++j) {
          if (t + j + 1 >= kKernel)
            sum += double{taps[j * kChannels + c]} * u[(t + j + 1 - kKernel) * kChannels + c];
        }
        EXPECT_NEAR(y[t * kChannels + c], sum / (1 + std::exp(-sum)), 1e-6);
      }
    }
  }
}

}  // namespace
}  // namespace packtrain

// Aim: routed experts add up what is asked for, and nothing else, in any grouping of tokens.

#include "worker/ops/experts.h"

#include <gtest/gtest.h>

#include <cmath>

#include "worker/ops/philox.h"

namespace packtrain {
namespace {

constexpr int kHidden = 12, kDim = 7, kExperts = 5, kTopK = 3;

class LocalExpertsTest : public testing::Test {
 protected:
  LocalExpertsTest() {
    for (size_t i = 0; i < 3; ++i) {
      for (uint32_t j = 0; j < kExperts * kDim * kHidden; ++j) {
        weights_[i].push_back(
            static_cast<float>(Philox4x32({j, static_cast<uint32_t>(i), 0, 0}, 4)[0]) * 0x1p-31F -
            1);
      }
    }
    const auto view = [&](size_t i, size_t rows, size_t cols) {
      return MatrixView{.rows = rows,
                        .cols = cols,
                        .data = reinterpret_cast<const std::byte*>(weights_[i].data())};
    };
    const ExpertWeights layer = {.gate = view(0, kExperts * kDim, kHidden),
                                 .up = view(1, kExperts * kDim, kHidden),
                                 .down = view(2, kExperts * kHidden, kDim),
                                 .expert_dim = kDim,
                                 .row_stride = kDim,
                                 .num_experts = kExperts};
    experts_ = std::make_unique<LocalExperts>(
        OpContext{.kernels = *SelectCpuKernels("scalar"), .pool = &pool_}, 4,
        std::vector<ExpertWeights>{layer, ExpertWeights{}});
  }

  ExpertsRequest Request(const std::vector<float>& x, const std::vector<int32_t>& ids,
                         const std::vector<float>& weights) const {
    return {.layer = 4,
            .tokens = static_cast<int>(x.size()) / kHidden,
            .hidden_dim = kHidden,
            .top_k = kTopK,
            .x = x.data(),
            .ids = ids.data(),
            .weights = weights.data()};
  }

  double Expert(const float* x, size_t expert, size_t row) const {
    double sum = 0;
    for (size_t i = 0; i < kDim; ++i) {
      double gate = 0, up = 0;
      for (size_t j = 0; j < kHidden; ++j) {
        gate += double{weights_[0][(expert * kDim + i) * kHidden + j]} * x[j];
        up += double{weights_[1][(expert * kDim + i) * kHidden + j]} * x[j];
      }
      sum += gate / (1 + std::exp(-gate)) * up * weights_[2][(expert * kHidden + row) * kDim + i];
    }
    return sum;
  }

  std::vector<float> weights_[3];
  ThreadPool pool_{2};
  std::unique_ptr<LocalExperts> experts_;
};

TEST_F(LocalExpertsTest, PicksAreWeighedAndSummed) {
  std::vector<float> x;
  for (uint32_t i = 0; i < 3 * kHidden; ++i) x.push_back(std::sin(static_cast<float>(i)));
  // Of the second token one pick belongs to somebody else; the third asks for none of ours.
  const std::vector<int32_t> ids = {4, 0, 2, 0, -1, 4, -1, -1, -1};
  const std::vector<float> picked = {0.5F, 0.3F, 0.2F, 1.0F, 9.0F, -2.0F, 1.0F, 1.0F, 1.0F};
  std::vector<float> y(3 * kHidden, NAN);
  ASSERT_TRUE(experts_->Compute(Request(x, ids, picked), y.data()).ok());
  for (size_t t = 0; t < 3; ++t) {
    for (size_t row = 0; row < kHidden; ++row) {
      double wanted = 0;
      for (size_t rank = 0; rank < kTopK; ++rank) {
        const int32_t id = ids[t * kTopK + rank];
        if (id >= 0)
          wanted += picked[t * kTopK + rank] *
                    Expert(x.data() + t * kHidden, static_cast<size_t>(id), row);
      }
      EXPECT_NEAR(y[t * kHidden + row], wanted, 1e-5);
    }
  }
  // One by one: the same bits.
  for (size_t t = 0; t < 3; ++t) {
    const std::vector<float> one(x.begin() + static_cast<std::ptrdiff_t>(t * kHidden),
                                 x.begin() + static_cast<std::ptrdiff_t>((t + 1) * kHidden));
    ExpertsRequest request = Request(one, ids, picked);
    request.ids += t * kTopK;
    request.weights += t * kTopK;
    std::vector<float> alone(kHidden);
    ASSERT_TRUE(experts_->Compute(request, alone.data()).ok());
    EXPECT_TRUE(std::equal(alone.begin(), alone.end(),
                           y.begin() + static_cast<std::ptrdiff_t>(t * kHidden)));
  }
}

TEST_F(LocalExpertsTest, WhatIsNotHeldIsRefused) {
  const std::vector<float> x(kHidden), picked(kTopK);
  std::vector<float> y(kHidden);
  const std::vector<int32_t> fine = {0, 1, 2}, too_large = {0, 5, 2};
  EXPECT_EQ(experts_->Compute(Request(x, too_large, picked), y.data()).code(),
            absl::StatusCode::kInvalidArgument);
  ExpertsRequest request = Request(x, fine, picked);
  for (int layer : {3, 5, 6}) {
    request.layer = layer;
    EXPECT_FALSE(experts_->Holds(layer));
    EXPECT_EQ(experts_->Compute(request, y.data()).code(), absl::StatusCode::kInvalidArgument);
  }
}

}  // namespace
}  // namespace packtrain

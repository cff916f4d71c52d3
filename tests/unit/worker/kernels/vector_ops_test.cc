// Every variant of the vector arithmetic against plain loops in double precision, at sizes around
// the vectors' lengths; and the exact class: the same bits in any company.

#include "worker/kernels/cpu/vector_ops.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "common/quant/codec.h"
#include "worker/kernels/cpu/isa.h"
#include "worker/kernels/cpu/kernels.h"

namespace packtrain {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
// A few roundings of an f32 operation, relative.
constexpr double kTolerance = 16 * 0x1p-24;

class VectorOpsTest : public testing::TestWithParam<Isa> {
 protected:
  void SetUp() override {
    if (!IsaSupported(GetParam())) GTEST_SKIP() << "this CPU has no " << IsaName(GetParam());
    ops_ = SelectCpuKernels(IsaName(GetParam())).value()->vector;
  }

  std::vector<float> Random(size_t n, float scale = 1) {
    std::normal_distribution<float> normal(0, scale);
    std::vector<float> values(n);
    for (float& value : values) value = normal(random_);
    return values;
  }

  const VectorOps* ops_ = nullptr;
  std::mt19937 random_{7};
};

void ExpectNear(double actual, double wanted, double magnitude) {
  EXPECT_LE(std::fabs(actual - wanted), kTolerance * magnitude) << actual << " " << wanted;
}

double Sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

TEST_P(VectorOpsTest, DecodesAsTheReferenceBitForBit) {
  for (TensorType type : {TensorType::kF16, TensorType::kQ8_0, TensorType::kQ4_1, TensorType::kQ4_K,
                          TensorType::kF32}) {
    for (size_t count : {size_t{256}, size_t{1024}}) {
      const std::vector<float> values = Random(count, 3);
      std::vector<uint8_t> blocks(RowBytes(type, count));
      Encode(type, values.data(), count, blocks.data());
      std::vector<float> wanted(count), actual(count);
      Decode(type, blocks.data(), count, wanted.data());
      ops_->decode(type, blocks.data(), count, actual.data());
      EXPECT_EQ(std::memcmp(actual.data(), wanted.data(), count * sizeof(float)), 0);
    }
  }
}

TEST_P(VectorOpsTest, DecodesEveryHalfAndOddCounts) {
  std::vector<uint16_t> halves(65536);
  for (size_t i = 0; i < halves.size(); ++i) halves[i] = static_cast<uint16_t>(i);
  const size_t count = halves.size() - 5;
  std::vector<float> actual(halves.size(), -1);
  ops_->decode(TensorType::kF16, halves.data(), count, actual.data());
  for (size_t i = 0; i < count; ++i) {
    const float wanted = HalfToFloat(halves[i]);
    ASSERT_TRUE(std::isnan(wanted) ? std::isnan(actual[i]) : actual[i] == wanted) << i;
  }
  EXPECT_EQ(actual[count], -1);
}

TEST_P(VectorOpsTest, NormsAndGatesAtEveryLength) {
  for (size_t n = 1; n <= 70; ++n) {
    const std::vector<float> x = Random(n), w = Random(n), gate = Random(n, 20);
    std::vector<float> y(n + 1, 99);
    double squares = 0;
    for (float value : x) squares += double{value} * value;
    const double scale = 1 / std::sqrt(squares / static_cast<double>(n) + 1e-5);
    ops_->rms_norm(x.data(), w.data(), 1e-5F, n, y.data());
    for (size_t i = 0; i < n; ++i) ExpectNear(y[i], x[i] * scale * w[i], std::fabs(y[i]));
    ops_->swiglu(gate.data(), x.data(), n, y.data());
    for (size_t i = 0; i < n; ++i) {
      const double wanted = gate[i] * Sigmoid(gate[i]) * x[i];
      ExpectNear(y[i], wanted, std::fabs(wanted));
    }
    ops_->gate(x.data(), gate.data(), n, y.data());
    for (size_t i = 0; i < n; ++i) {
      const double wanted = x[i] * Sigmoid(gate[i]);
      ExpectNear(y[i], wanted, std::fabs(wanted));
    }
    EXPECT_EQ(y[n], 99);
  }
}

TEST_P(VectorOpsTest, SigmoidHoldsAtItsEnds) {
  const std::vector<float> gate = {kInfinity, -kInfinity, 1e30F,   -1e30F,
                                   88.7F,     -88.7F,     -200.0F, 0.0F};
  const std::vector<float> wanted = {1, 0, 1, 0, 1, 0, 0, 0.5F};
  const std::vector<float> ones(gate.size(), 1);
  std::vector<float> y(gate.size());
  ops_->gate(ones.data(), gate.data(), gate.size(), y.data());
  for (size_t i = 0; i < gate.size(); ++i) EXPECT_NEAR(y[i], wanted[i], 1e-30) << gate[i];
  for (uint32_t bits : {0x7fc00000U, 0x7fc00001U, 0xffc12345U}) {
    float nan;
    std::memcpy(&nan, &bits, sizeof nan);
    ops_->gate(ones.data(), &nan, 1, y.data());
    EXPECT_TRUE(std::isnan(y[0]));
  }
}

// One query row over keys in blocks; the softmax in double.
TEST_P(VectorOpsTest, AttendsAsASoftmaxOverAllBlocks) {
  for (size_t key_dim : {size_t{8}, size_t{24}, size_t{33}, size_t{576}}) {
    for (size_t queries : {size_t{1}, size_t{2}, size_t{4}, size_t{7}}) {
      const size_t value_dim = key_dim - 5, positions = 64 + 64 + 11;
      const std::vector<float> q = Random(queries * key_dim), keys = Random(positions * key_dim);
      std::vector<float> scores(queries * kScoreStride), sum(queries), out(queries * value_dim);
      std::vector<float> max(queries, -kInfinity);
      for (size_t first = 0; first < positions; first += 64) {
        ops_->attend({.q = q.data(),
                      .queries = queries,
                      .keys = keys.data() + first * key_dim,
                      .count = std::min<size_t>(64, positions - first),
                      .key_dim = key_dim,
                      .values = keys.data() + first * key_dim,
                      .value_dim = value_dim,
                      .value_stride = key_dim,
                      .scale = 0.3F,
                      .scores = scores.data(),
                      .max = max.data(),
                      .sum = sum.data(),
                      .out = out.data()});
      }
      for (size_t a = 0; a < queries; ++a) {
        std::vector<double> exact(value_dim), magnitude(value_dim);
        double total = 0, worst_score = 0;
        std::vector<double> score(positions);
        for (size_t k = 0; k < positions; ++k) {
          for (size_t i = 0; i < key_dim; ++i) {
            score[k] += 0.3F * double{q[a * key_dim + i]} * keys[k * key_dim + i];
          }
          worst_score = std::max(worst_score, std::fabs(score[k]));
        }
        for (size_t k = 0; k < positions; ++k) {
          const double weight = std::exp(score[k] - double{max[a]});
          total += weight;
          for (size_t i = 0; i < value_dim; ++i) {
            exact[i] += weight * keys[k * key_dim + i];
            magnitude[i] += weight * std::fabs(keys[k * key_dim + i]);
          }
        }
        // An error of a score is one of its weight, relative.
        const double spread = 4 + worst_score * std::sqrt(static_cast<double>(key_dim));
        EXPECT_NEAR(sum[a], total, kTolerance * spread * total);
        for (size_t i = 0; i < value_dim; ++i) {
          EXPECT_NEAR(out[a * value_dim + i], exact[i], kTolerance * spread * magnitude[i]);
        }
      }
    }
  }
}

TEST_P(VectorOpsTest, QueriesAttendTogetherAsTheyDoAlone) {
  constexpr size_t kQueries = 7, kDim = 40, kCount = 61;
  const std::vector<float> q = Random(kQueries * kDim), keys = Random(kCount * kDim);
  std::vector<float> scores(kQueries * kScoreStride), max(kQueries, -kInfinity), sum(kQueries);
  std::vector<float> out(kQueries * kDim);
  AttentionBlock block = {.q = q.data(),
                          .queries = kQueries,
                          .keys = keys.data(),
                          .count = kCount,
                          .key_dim = kDim,
                          .values = keys.data(),
                          .value_dim = kDim,
                          .value_stride = kDim,
                          .scores = scores.data(),
                          .max = max.data(),
                          .sum = sum.data(),
                          .out = out.data()};
  ops_->attend(block);
  const std::vector<float> together = out, sums = sum;
  out.assign(out.size(), 0);
  sum.assign(sum.size(), 0);
  max.assign(max.size(), -kInfinity);
  block.queries = 1;
  for (size_t a = 0; a < kQueries; ++a) {
    block.q = q.data() + a * kDim;
    block.max = max.data() + a;
    block.sum = sum.data() + a;
    block.out = out.data() + a * kDim;
    ops_->attend(block);
  }
  EXPECT_EQ(out, together);
  EXPECT_EQ(sum, sums);
}

TEST_P(VectorOpsTest, IndexScoresSumTheHeadsPositiveParts) {
  for (size_t count : {size_t{1}, size_t{5}, size_t{64}}) {
    for (size_t dim : {size_t{12}, size_t{64}}) {
      constexpr size_t kHeads = 5;
      const std::vector<float> q = Random(kHeads * dim), keys = Random(count * dim);
      const std::vector<float> weights = Random(kHeads);
      std::vector<float> scratch(kHeads * kScoreStride), scores(kScoreStride);
      ops_->index_scores(q.data(), weights.data(), kHeads, keys.data(), count, dim, 0.25F,
                         scratch.data(), scores.data());
      for (size_t k = 0; k < count; ++k) {
        double wanted = 0, magnitude = 0;
        for (size_t h = 0; h < kHeads; ++h) {
          double dot = 0, sum = 0;
          for (size_t i = 0; i < dim; ++i) {
            dot += double{q[h * dim + i]} * keys[k * dim + i];
            sum += std::fabs(double{q[h * dim + i]} * keys[k * dim + i]);
          }
          wanted += 0.25 * weights[h] * std::max(0.0, dot);
          magnitude += std::fabs(weights[h]) * sum;
        }
        ExpectNear(scores[k], wanted, magnitude);
      }
    }
  }
}

TEST_P(VectorOpsTest, ConvolvesAndUpdatesTheDeltaState) {
  for (size_t n : {size_t{3}, size_t{16}, size_t{53}, size_t{128}}) {
    const std::vector<float> inputs = Random(4 * n), taps = Random(4 * n);
    const float* rows[4];
    for (size_t j = 0; j < 4; ++j) rows[j] = inputs.data() + j * n;
    std::vector<float> y(n);
    ops_->conv_silu(rows, taps.data(), 4, n, n, y.data());
    for (size_t c = 0; c < n; ++c) {
      double sum = 0, magnitude = 0;
      for (size_t j = 0; j < 4; ++j) {
        sum += double{taps[j * n + c]} * inputs[j * n + c];
        magnitude += std::fabs(double{taps[j * n + c]} * inputs[j * n + c]);
      }
      ExpectNear(y[c], sum * Sigmoid(sum), magnitude);
    }

    const std::vector<float> q = Random(n), k = Random(n, 0.1F), v = Random(n);
    std::vector<float> state = Random(n * n), out(n);
    const std::vector<float> before = state;
    ops_->delta_rule(q.data(), k.data(), v.data(), -0.2F, 0.7F, n, state.data(), out.data());
    const double decay = std::exp(-0.2F);
    for (size_t j = 0; j < n; ++j) {
      double d = 0, wanted = 0, magnitude = 0, of_d = 0;
      for (size_t i = 0; i < n; ++i) {
        d += k[i] * decay * before[i * n + j];
        of_d += std::fabs(k[i] * decay * before[i * n + j]);
      }
      d = 0.7F * (v[j] - d);
      of_d += std::fabs(v[j]);
      for (size_t i = 0; i < n; ++i) {
        const double s = decay * before[i * n + j] + k[i] * d;
        const double of_s = std::fabs(before[i * n + j]) + std::fabs(k[i]) * of_d;
        ExpectNear(state[i * n + j], s, of_s);
        wanted += q[i] * s;
        magnitude += std::fabs(q[i]) * of_s;
      }
      ExpectNear(out[j], wanted, magnitude);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, VectorOpsTest, testing::ValuesIn(kAllIsas),
                         [](const auto& test) { return std::string(IsaName(test.param)); });

}  // namespace
}  // namespace packtrain

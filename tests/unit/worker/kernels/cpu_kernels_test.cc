// Every variant of every weight type against the reference decoder in double precision, on golden
// rows and on random shapes, with tolerances from the number of roundings; and the exact class: the
// same bits however rows and tokens are grouped. Matrices end at an unreadable page.

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <string>

#include "common/base/check.h"
#include "common/quant/codec.h"
#include "tests/support/quant_golden.h"
#include "worker/kernels/cpu/isa.h"
#include "worker/kernels/cpu/kernels.h"

namespace packtrain {
namespace {

using testing::GoldenTypes;
using testing::QuantGolden;
using testing::ReadQuantGolden;

// Rounding of one f32 operation.
constexpr double kEpsilon = 0x1p-24;

struct Variant {
  TensorType type;
  Isa isa;
};

std::vector<Variant> Variants() {
  std::vector<Variant> variants;
  for (Isa isa : kAllIsas) {
    for (TensorType type : GoldenTypes()) variants.push_back({type, isa});
  }
  return variants;
}

std::string VariantName(const ::testing::TestParamInfo<Variant>& param) {
  return std::string(TypeName(param.param.type)) + "_" + std::string(IsaName(param.param.isa));
}

// How many activations share a step of their 8-bit form; 0 where they stay f32.
size_t ActivationBlock(const Variant& variant) {
  using enum TensorType;
  if (variant.isa == Isa::kScalar) return 0;
  switch (variant.type) {
    case kQ2_K:
    case kQ3_K:
    case kQ4_K:
    case kQ5_K:
    case kQ6_K:
    case kIQ1_S:
    case kIQ1_M:
    case kIQ2_XXS:
    case kIQ2_XS:
    case kIQ2_S:
    case kIQ3_XXS:
    case kIQ3_S:
    case kIQ4_XS:
      return 256;
    case kQ8_0:
    case kQ4_0:
    case kIQ4_NL:
    case kMXFP4:
      return 32;
    default:
      return 0;
  }
}

// The activations that the kernel multiplies with.
std::vector<double> Rounded(const float* x, size_t n, size_t block) {
  std::vector<double> rounded(x, x + n);
  for (size_t first = 0; block != 0 && first < n; first += block) {
    float largest = 0;
    for (size_t i = first; i < first + block; ++i) largest = std::max(largest, std::fabs(x[i]));
    const float inverse = 127.0f / largest;
    for (size_t i = first; i < first + block; ++i) {
      rounded[i] = largest == 0 ? 0 : std::nearbyint(x[i] * inverse) * double{1.0f / inverse};
    }
  }
  return rounded;
}

// Bytes whose end is the end of a page that nothing may be read behind.
class GuardedBytes {
 public:
  explicit GuardedBytes(const std::vector<uint8_t>& bytes) {
    const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    const size_t used = (bytes.size() + page - 1) / page * page;
    size_ = used + page;
    base_ = mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(base_ != MAP_FAILED);
    CHECK(mprotect(static_cast<char*>(base_) + used, page, PROT_NONE) == 0);
    data_ = static_cast<uint8_t*>(base_) + used - bytes.size();
    std::memcpy(data_, bytes.data(), bytes.size());
  }
  ~GuardedBytes() { munmap(base_, size_); }
  GuardedBytes(const GuardedBytes&) = delete;
  GuardedBytes& operator=(const GuardedBytes&) = delete;

  const uint8_t* data() const { return data_; }

 private:
  void* base_;
  size_t size_;
  uint8_t* data_;
};

struct FreeDeleter {
  void operator()(void* p) const { std::free(p); }
};
using Prepared = std::unique_ptr<void, FreeDeleter>;

struct Problem {
  TensorType type;
  size_t rows, n, tokens;
  std::vector<uint8_t> weights;
  std::vector<float> x;  // [tokens, n]
};

using Outputs = std::vector<std::vector<float>>;  // [tokens][rows]

Outputs MatMul(const WeightKernel& kernel, const Problem& p, size_t rows_per_call,
               size_t tokens_per_call) {
  const size_t bytes = kernel.activation_bytes(p.n);
  EXPECT_EQ(bytes % 64, 0u);
  std::vector<Prepared> prepared;
  std::vector<const void*> activations;
  for (size_t t = 0; t < p.tokens; ++t) {
    prepared.emplace_back(std::aligned_alloc(64, bytes));
    std::memset(prepared.back().get(), 0xff, bytes);
    kernel.prepare(p.x.data() + t * p.n, p.n, prepared.back().get());
    activations.push_back(prepared.back().get());
  }
  const GuardedBytes weights(p.weights);
  Outputs y(p.tokens, std::vector<float>(p.rows, std::nanf("")));
  const size_t row_bytes = RowBytes(p.type, p.n);
  for (size_t r = 0; r < p.rows; r += rows_per_call) {
    for (size_t t = 0; t < p.tokens; t += tokens_per_call) {
      const size_t tokens = std::min(tokens_per_call, p.tokens - t);
      std::vector<float*> out;
      for (size_t i = 0; i < tokens; ++i) out.push_back(y[t + i].data() + r);
      kernel.mat_mul(weights.data() + r * row_bytes, std::min(rows_per_call, p.rows - r), p.n,
                     activations.data() + t, tokens, out.data());
    }
  }
  return y;
}

// Every output against sums in double of decoded weights and rounded activations.
void ExpectCloseToReference(const Variant& variant, const Problem& p, const Outputs& y) {
  const size_t block = Traits(p.type).block_weights;
  // Roundings on the way of one product into the result: the scales, and one addition per 16 lanes
  // and 256 weights (a few more for plain sums), and those of the final reduction.
  const double roundings = static_cast<double>(p.n) / 32 + 16;
  std::vector<std::vector<double>> x;
  for (size_t t = 0; t < p.tokens; ++t) {
    x.push_back(Rounded(p.x.data() + t * p.n, p.n, ActivationBlock(variant)));
  }
  std::vector<float> row(p.n);
  for (size_t r = 0; r < p.rows; ++r) {
    Decode(p.type, p.weights.data() + r * RowBytes(p.type, p.n), p.n, row.data());
    for (size_t t = 0; t < p.tokens; ++t) {
      double dot = 0;
      // A type with minima computes with terms as large as the largest weights of a block.
      double magnitude = 0;
      for (size_t first = 0; first < p.n; first += block) {
        double largest = 0, sum_x = 0;
        for (size_t i = first; i < first + block; ++i) {
          dot += row[i] * x[t][i];
          largest = std::max(largest, std::fabs(double{row[i]}));
          sum_x += std::fabs(x[t][i]);
        }
        magnitude += largest * sum_x;
      }
      if (magnitude > double{std::numeric_limits<float>::max()}) continue;
      const double tolerance = roundings * (kEpsilon * magnitude + 0x1p-149);
      ASSERT_LE(std::fabs(y[t][r] - dot), tolerance)
          << "row " << r << " of " << p.rows << ", token " << t << " of " << p.tokens << ", n "
          << p.n << ": " << y[t][r] << " for " << dot;
    }
  }
}

class CpuKernelTest : public ::testing::TestWithParam<Variant> {
 protected:
  void SetUp() override {
    if (!IsaSupported(GetParam().isa)) GTEST_SKIP() << "this CPU lacks it";
    const auto kernels = SelectCpuKernels(IsaName(GetParam().isa));
    ASSERT_TRUE(kernels.ok()) << kernels.status();
    kernel_ = (*kernels)->weight(GetParam().type);
    ASSERT_NE(kernel_, nullptr);
    // Blocks to draw random matrices from: each has all grid entries and sign patterns.
    const QuantGolden golden = ReadQuantGolden("random", GetParam().type);
    pool_ = golden.blocks;
  }

  Problem RandomProblem(size_t rows, size_t blocks, size_t tokens) {
    const TypeTraits& traits = Traits(GetParam().type);
    const size_t n = blocks * traits.block_weights;
    Problem p{traits.type, rows, n, tokens, {}, {}};
    const size_t pool_blocks = pool_.size() / traits.block_bytes;
    for (size_t i = 0; i < rows * blocks; ++i) {
      const auto block =
          pool_.begin() + static_cast<ptrdiff_t>(random_() % pool_blocks * traits.block_bytes);
      p.weights.insert(p.weights.end(), block, block + traits.block_bytes);
    }
    std::normal_distribution<float> normal;
    for (size_t i = 0; i < tokens * n; ++i) p.x.push_back(normal(random_));
    return p;
  }

  const WeightKernel* kernel_ = nullptr;
  std::vector<uint8_t> pool_;
  std::mt19937 random_{7};
};
INSTANTIATE_TEST_SUITE_P(AllTypes, CpuKernelTest, ::testing::ValuesIn(Variants()), VariantName);

TEST_P(CpuKernelTest, GoldenRowsGiveTheGoldenDotProducts) {
  const size_t activation_block = ActivationBlock(GetParam());
  for (const char* kind : {"quantised", "random"}) {
    const QuantGolden golden = ReadQuantGolden(kind, GetParam().type);
    if (golden.dot_exact.empty()) continue;
    const Problem p{GetParam().type, golden.rows,      golden.columns, 1,
                    golden.blocks,   golden.activation};
    const Outputs y = MatMul(*kernel_, p, p.rows, 1);
    ExpectCloseToReference(GetParam(), p, y);
    // The reference's Q8_K activations have the same steps, its Q8_0 ones steps rounded to f16.
    const std::vector<double>& dots =
        activation_block == 0 ? golden.dot_exact : golden.dot_quantized;
    const double tolerance = activation_block == 32 ? 0x1p-11 : 1e-6;
    for (size_t r = 0; r < p.rows; ++r) {
      EXPECT_LE(std::fabs(y[0][r] - dots[r]), tolerance * golden.abs_sum[r]) << kind << r;
    }
  }
}

TEST_P(CpuKernelTest, ScalesOfAnyFinitePatternWork) {
  const QuantGolden golden = ReadQuantGolden("random", GetParam().type);
  if (golden.activation.empty()) GTEST_SKIP() << "an activation format";
  const size_t rows = golden.wide_decoded_hash.size();
  const Problem p{GetParam().type, rows, golden.columns, 1, golden.wide_blocks, golden.activation};
  ExpectCloseToReference(GetParam(), p, MatMul(*kernel_, p, rows, 1));
}

struct Shape {
  size_t rows, blocks, tokens;
};
constexpr Shape kShapes[] = {{1, 1, 1},  {1, 3, 2}, {3, 5, 3},  {5, 2, 4},   {9, 3, 5},  {8, 4, 6},
                             {17, 1, 7}, {4, 7, 8}, {13, 6, 9}, {11, 5, 33}, {2, 27, 70}};

TEST_P(CpuKernelTest, RandomMatricesOfAnyShapeMatchTheReference) {
  for (const Shape& s : kShapes) {
    const Problem p = RandomProblem(s.rows, s.blocks, s.tokens);
    ExpectCloseToReference(GetParam(), p, MatMul(*kernel_, p, p.rows, p.tokens));
  }
}

TEST_P(CpuKernelTest, GroupingOfRowsAndTokensChangesNoBit) {
  for (const Shape& s : kShapes) {
    const Problem p = RandomProblem(s.rows, s.blocks, s.tokens);
    const Outputs whole = MatMul(*kernel_, p, p.rows, p.tokens);
    for (size_t rows_per_call : {size_t{1}, size_t{3}, p.rows}) {
      for (size_t tokens_per_call : {1u, 2u, 3u, 4u, 5u, 8u}) {
        const Outputs parts = MatMul(*kernel_, p, rows_per_call, tokens_per_call);
        for (size_t t = 0; t < p.tokens; ++t) {
          ASSERT_EQ(std::memcmp(parts[t].data(), whole[t].data(), p.rows * sizeof(float)), 0)
              << p.rows << " rows, " << p.n << " weights, token " << t << " of " << p.tokens
              << " by " << rows_per_call << " rows, " << tokens_per_call << " tokens";
        }
      }
    }
  }
}

TEST_P(CpuKernelTest, NanInAnActivationReachesItsTokenOnly) {
  Problem p = RandomProblem(3, 3, 6);
  p.x[2 * p.n + p.n / 2] = std::nanf("");
  const Outputs y = MatMul(*kernel_, p, p.rows, p.tokens);
  for (size_t t = 0; t < p.tokens; ++t) {
    for (float value : y[t]) EXPECT_EQ(std::isnan(value), t == 2) << t;
  }
}

TEST_P(CpuKernelTest, ZeroActivationsGiveZero) {
  Problem p = RandomProblem(2, 3, 5);
  std::fill(p.x.begin(), p.x.end(), 0.0f);
  for (const auto& token : MatMul(*kernel_, p, p.rows, p.tokens)) {
    for (float value : token) EXPECT_EQ(value, 0.0f);
  }
}

TEST(CpuKernelTableTest, IntegersHaveNoKernelInAnyVariant) {
  using enum TensorType;
  for (Isa isa : kAllIsas) {
    if (!IsaSupported(isa)) continue;
    const auto kernels = SelectCpuKernels(IsaName(isa));
    ASSERT_TRUE(kernels.ok());
    for (TensorType type : {kI8, kI16, kI32, kI64}) EXPECT_EQ((*kernels)->weight(type), nullptr);
    EXPECT_NE((*kernels)->weight(kF64), nullptr);
  }
}

}  // namespace
}  // namespace packtrain

// Every variant of every weight type against the reference decoder in double precision: golden rows
// and random shapes, tolerances from the format of the activations; and the exact class: the same
// bits however rows and tokens are grouped.

#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <memory>
#include <string>

#include "common/quant/codec.h"
#include "tests/support/quant_golden.h"
#include "worker/kernels/cpu/isa.h"
#include "worker/kernels/cpu/kernels.h"

namespace packtrain {
namespace {

using testing::GoldenTypes;
using testing::QuantGolden;
using testing::ReadQuantGolden;

struct Variant {
  TensorType type;
  Isa isa;
};

std::vector<Variant> Variants() {
  std::vector<Variant> variants;
  for (Isa isa : {Isa::kScalar}) {
    for (TensorType type : GoldenTypes()) variants.push_back({type, isa});
  }
  return variants;
}

std::string VariantName(const ::testing::TestParamInfo<Variant>& param) {
  return std::string(TypeName(param.param.type)) + "_" + std::string(IsaName(param.param.isa));
}

struct FreeDeleter {
  void operator()(void* p) const { std::free(p); }
};

// One prepared activation row.
class Activation {
 public:
  Activation(const WeightKernel& kernel, const float* x, size_t n)
      : data_(std::aligned_alloc(64, kernel.activation_bytes(n) + 64)) {
    kernel.prepare(x, n, data_.get());
  }
  const void* get() const { return data_.get(); }

 private:
  std::unique_ptr<void, FreeDeleter> data_;
};

// A matrix in memory that ends where its last row ends, so that a sanitizer sees a read past it.
struct Problem {
  TensorType type;
  size_t rows, n, tokens;
  std::vector<uint8_t> weights;
  std::vector<float> x;  // [tokens, n]
};

using Outputs = std::vector<std::vector<float>>;  // [tokens][rows]

Outputs MatMul(const WeightKernel& kernel, const Problem& p, size_t rows_per_call,
               size_t tokens_per_call) {
  std::vector<Activation> prepared;
  std::vector<const void*> activations;
  for (size_t t = 0; t < p.tokens; ++t) prepared.emplace_back(kernel, p.x.data() + t * p.n, p.n);
  for (const Activation& a : prepared) activations.push_back(a.get());
  Outputs y(p.tokens, std::vector<float>(p.rows, std::nanf("")));
  const size_t row_bytes = RowBytes(p.type, p.n);
  for (size_t r = 0; r < p.rows; r += rows_per_call) {
    for (size_t t = 0; t < p.tokens; t += tokens_per_call) {
      const size_t tokens = std::min(tokens_per_call, p.tokens - t);
      std::vector<float*> out;
      for (size_t i = 0; i < tokens; ++i) out.push_back(y[t + i].data() + r);
      kernel.mat_mul(p.weights.data() + r * row_bytes, std::min(rows_per_call, p.rows - r), p.n,
                     activations.data() + t, tokens, out.data());
    }
  }
  return y;
}

class CpuKernelTest : public ::testing::TestWithParam<Variant> {
 protected:
  void SetUp() override {
    if (!IsaSupported(GetParam().isa)) GTEST_SKIP() << "this CPU lacks it";
    const auto kernels = SelectCpuKernels(IsaName(GetParam().isa));
    ASSERT_TRUE(kernels.ok()) << kernels.status();
    kernel_ = (*kernels)->weight(GetParam().type);
    ASSERT_NE(kernel_, nullptr);
  }

  const WeightKernel* kernel_ = nullptr;
};
INSTANTIATE_TEST_SUITE_P(AllTypes, CpuKernelTest, ::testing::ValuesIn(Variants()), VariantName);

TEST_P(CpuKernelTest, GoldenRowsGiveTheGoldenDotProducts) {
  for (const char* kind : {"quantised", "random"}) {
    const QuantGolden golden = ReadQuantGolden(kind, GetParam().type);
    if (golden.dot_exact.empty()) continue;
    const Problem p{GetParam().type, golden.rows,      golden.columns, 1,
                    golden.blocks,   golden.activation};
    const Outputs y = MatMul(*kernel_, p, p.rows, 1);
    for (size_t r = 0; r < p.rows; ++r) {
      EXPECT_LE(std::fabs(y[0][r] - golden.dot_exact[r]), 1e-6 * golden.abs_sum[r]) << kind << r;
    }
  }
}

}  // namespace
}  // namespace packtrain

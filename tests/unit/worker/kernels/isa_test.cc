// Choice of the kernel variant by name and by what the machine has.

#include "worker/kernels/cpu/isa.h"

#include <gtest/gtest.h>

#include "worker/kernels/cpu/kernels.h"

namespace packtrain {
namespace {

TEST(IsaTest, UnknownNameIsRefusedAndListsWhatThereIs) {
  const auto kernels = SelectCpuKernels("avx1024");
  ASSERT_FALSE(kernels.ok());
  EXPECT_EQ(kernels.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(kernels.status().message().find("avx1024"), std::string::npos);
  EXPECT_NE(kernels.status().message().find("scalar"), std::string::npos);
}

TEST(IsaTest, ScalarIsAlwaysThere) {
  const auto kernels = SelectCpuKernels("scalar");
  ASSERT_TRUE(kernels.ok());
  EXPECT_EQ((*kernels)->isa, Isa::kScalar);
  EXPECT_TRUE(SelectCpuKernels("").ok());
}

}  // namespace
}  // namespace packtrain

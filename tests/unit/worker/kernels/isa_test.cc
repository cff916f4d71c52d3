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

TEST(IsaTest, AVariantIsGivenOnlyIfTheMachineHasIt) {
  for (Isa isa : kAllIsas) {
    const auto kernels = SelectCpuKernels(IsaName(isa));
    if (IsaSupported(isa)) {
      ASSERT_TRUE(kernels.ok()) << kernels.status();
      EXPECT_EQ((*kernels)->isa, isa);
      EXPECT_EQ((*kernels)->name, IsaName(isa));
    } else {
      EXPECT_EQ(kernels.status().code(), absl::StatusCode::kFailedPrecondition);
    }
  }
}

TEST(IsaTest, WithoutANameTheBestOneIsTaken) {
  const auto kernels = SelectCpuKernels("");
  ASSERT_TRUE(kernels.ok());
  for (Isa isa : {Isa::kAvx512Gather, Isa::kAvx512, Isa::kAvx2, Isa::kScalar}) {
    if (!IsaSupported(isa)) continue;
    EXPECT_EQ((*kernels)->isa, isa);
    break;
  }
}

}  // namespace
}  // namespace packtrain

#include "worker/kernels/cpu/variants.h"

namespace packtrain {

const WeightKernel* Avx2WeightKernel(TensorType type) {
  switch (type) {
    using enum TensorType;
    case kF32:
      return &kF32Avx2;
    case kF16:
      return &kF16Avx2;
    case kBF16:
      return &kBF16Avx2;
    case kF64:
      return &kF64Avx2;
    case kQ4_0:
      return &kQ4_0Avx2;
    case kQ4_1:
      return &kQ4_1Avx2;
    case kQ5_0:
      return &kQ5_0Avx2;
    case kQ5_1:
      return &kQ5_1Avx2;
    case kQ8_0:
      return &kQ8_0Avx2;
    case kQ8_1:
      return &kQ8_1Avx2;
    case kQ2_K:
      return &kQ2KAvx2;
    case kQ3_K:
      return &kQ3KAvx2;
    case kQ4_K:
      return &kQ4KAvx2;
    case kQ5_K:
      return &kQ5KAvx2;
    case kQ6_K:
      return &kQ6KAvx2;
    case kQ8_K:
      return &kQ8KAvx2;
    case kIQ1_S:
      return &kIq1SAvx2;
    case kIQ1_M:
      return &kIq1MAvx2;
    case kIQ2_XXS:
      return &kIq2XxsAvx2;
    case kIQ2_XS:
      return &kIq2XsAvx2;
    case kIQ2_S:
      return &kIq2SAvx2;
    case kIQ3_XXS:
      return &kIq3XxsAvx2;
    case kIQ3_S:
      return &kIq3SAvx2;
    case kIQ4_NL:
      return &kIq4NlAvx2;
    case kIQ4_XS:
      return &kIq4XsAvx2;
    case kTQ1_0:
      return &kTq1_0Avx2;
    case kTQ2_0:
      return &kTq2_0Avx2;
    case kQ1_0:
      return &kQ1_0Avx2;
    case kQ2_0:
      return &kQ2_0Avx2;
    case kMXFP4:
      return &kMxfp4Avx2;
    case kNVFP4:
      return &kNvfp4Avx2;
    case kI8:
    case kI16:
    case kI32:
    case kI64:
      return nullptr;
  }
  return nullptr;
}

const WeightKernel* Avx512WeightKernel(TensorType type) {
  switch (type) {
    using enum TensorType;
    case kF32:
      return &kF32Avx512;
    case kF16:
      return &kF16Avx512;
    case kBF16:
      return &kBF16Avx512;
    case kF64:
      return &kF64Avx512;
    case kQ4_0:
      return &kQ4_0Avx512;
    case kQ4_1:
      return &kQ4_1Avx512;
    case kQ5_0:
      return &kQ5_0Avx512;
    case kQ5_1:
      return &kQ5_1Avx512;
    case kQ8_0:
      return &kQ8_0Avx512;
    case kQ8_1:
      return &kQ8_1Avx512;
    case kQ2_K:
      return &kQ2KAvx512;
    case kQ3_K:
      return &kQ3KAvx512;
    case kQ4_K:
      return &kQ4KAvx512;
    case kQ5_K:
      return &kQ5KAvx512;
    case kQ6_K:
      return &kQ6KAvx512;
    case kQ8_K:
      return &kQ8KAvx512;
    case kIQ1_S:
      return &kIq1SAvx512;
    case kIQ1_M:
      return &kIq1MAvx512;
    case kIQ2_XXS:
      return &kIq2XxsAvx512;
    case kIQ2_XS:
      return &kIq2XsAvx512;
    case kIQ2_S:
      return &kIq2SAvx512;
    case kIQ3_XXS:
      return &kIq3XxsAvx512;
    case kIQ3_S:
      return &kIq3SAvx512;
    case kIQ4_NL:
      return &kIq4NlAvx512;
    case kIQ4_XS:
      return &kIq4XsAvx512;
    case kTQ1_0:
      return &kTq1_0Avx512;
    case kTQ2_0:
      return &kTq2_0Avx512;
    case kQ1_0:
      return &kQ1_0Avx512;
    case kQ2_0:
      return &kQ2_0Avx512;
    case kMXFP4:
      return &kMxfp4Avx512;
    case kNVFP4:
      return &kNvfp4Avx512;
    case kI8:
    case kI16:
    case kI32:
    case kI64:
      return nullptr;
  }
  return nullptr;
}

// The other types have no table that is looked up faster by gathering.
const WeightKernel* Avx512GatherWeightKernel(TensorType type) {
  switch (type) {
    case TensorType::kIQ1_S:
      return &kIq1SAvx512Gather;
    case TensorType::kIQ1_M:
      return &kIq1MAvx512Gather;
    default:
      return Avx512WeightKernel(type);
  }
}

}  // namespace packtrain

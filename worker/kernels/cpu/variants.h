#pragma once

// The kernels of each weight type per instruction set, and the functions that pick one of a set;
// nullptr for types that are not weights.

#include "common/quant/type.h"
#include "worker/kernels/cpu/weight_kernel.h"

namespace packtrain {

const WeightKernel* ScalarWeightKernel(TensorType type);
const WeightKernel* Avx2WeightKernel(TensorType type);
const WeightKernel* Avx512WeightKernel(TensorType type);
const WeightKernel* Avx512GatherWeightKernel(TensorType type);

extern const WeightKernel kF32Avx512;
extern const WeightKernel kF16Avx512;
extern const WeightKernel kBF16Avx512;
extern const WeightKernel kF64Avx512;
extern const WeightKernel kQ4_0Avx512;
extern const WeightKernel kQ4_1Avx512;
extern const WeightKernel kQ5_0Avx512;
extern const WeightKernel kQ5_1Avx512;
extern const WeightKernel kQ8_0Avx512;
extern const WeightKernel kQ8_1Avx512;
extern const WeightKernel kQ2KAvx512;
extern const WeightKernel kQ3KAvx512;
extern const WeightKernel kQ4KAvx512;
extern const WeightKernel kQ5KAvx512;
extern const WeightKernel kQ6KAvx512;
extern const WeightKernel kQ8KAvx512;
extern const WeightKernel kIq1SAvx512;
extern const WeightKernel kIq1MAvx512;
extern const WeightKernel kIq1SAvx512Gather;
extern const WeightKernel kIq1MAvx512Gather;
extern const WeightKernel kIq2XxsAvx512;
extern const WeightKernel kIq2XsAvx512;
extern const WeightKernel kIq2SAvx512;
extern const WeightKernel kIq3XxsAvx512;
extern const WeightKernel kIq3SAvx512;
extern const WeightKernel kIq4NlAvx512;
extern const WeightKernel kIq4XsAvx512;
extern const WeightKernel kTq1_0Avx512;
extern const WeightKernel kTq2_0Avx512;
extern const WeightKernel kQ1_0Avx512;
extern const WeightKernel kQ2_0Avx512;
extern const WeightKernel kMxfp4Avx512;
extern const WeightKernel kNvfp4Avx512;

extern const WeightKernel kF32Avx2;
extern const WeightKernel kF16Avx2;
extern const WeightKernel kBF16Avx2;
extern const WeightKernel kF64Avx2;
extern const WeightKernel kQ4_0Avx2;
extern const WeightKernel kQ4_1Avx2;
extern const WeightKernel kQ5_0Avx2;
extern const WeightKernel kQ5_1Avx2;
extern const WeightKernel kQ8_0Avx2;
extern const WeightKernel kQ8_1Avx2;
extern const WeightKernel kQ2KAvx2;
extern const WeightKernel kQ3KAvx2;
extern const WeightKernel kQ4KAvx2;
extern const WeightKernel kQ5KAvx2;
extern const WeightKernel kQ6KAvx2;
extern const WeightKernel kQ8KAvx2;
extern const WeightKernel kIq1SAvx2;
extern const WeightKernel kIq1MAvx2;
extern const WeightKernel kIq2XxsAvx2;
extern const WeightKernel kIq2XsAvx2;
extern const WeightKernel kIq2SAvx2;
extern const WeightKernel kIq3XxsAvx2;
extern const WeightKernel kIq3SAvx2;
extern const WeightKernel kIq4NlAvx2;
extern const WeightKernel kIq4XsAvx2;
extern const WeightKernel kTq1_0Avx2;
extern const WeightKernel kTq2_0Avx2;
extern const WeightKernel kQ1_0Avx2;
extern const WeightKernel kQ2_0Avx2;
extern const WeightKernel kMxfp4Avx2;
extern const WeightKernel kNvfp4Avx2;

}  // namespace packtrain

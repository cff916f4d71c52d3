#pragma once

// The weight types whose rates are measured: those that most of people's files are made of.

#include "common/quant/type.h"

namespace packtrain {

inline constexpr TensorType kMeasuredTypes[] = {
    TensorType::kF32,     TensorType::kF16,    TensorType::kBF16,   TensorType::kQ8_0,
    TensorType::kQ4_0,    TensorType::kQ2_K,   TensorType::kQ3_K,   TensorType::kQ4_K,
    TensorType::kQ5_K,    TensorType::kQ6_K,   TensorType::kIQ1_S,  TensorType::kIQ1_M,
    TensorType::kIQ2_XXS, TensorType::kIQ2_XS, TensorType::kIQ2_S,  TensorType::kIQ3_XXS,
    TensorType::kIQ3_S,   TensorType::kIQ4_NL, TensorType::kIQ4_XS, TensorType::kMXFP4,
};

}  // namespace packtrain

#include "common/quant/type.h"

#include "common/base/check.h"

namespace packtrain {
namespace {

using enum TensorType;

constexpr TypeTraits kTypes[] = {
    {kF32, "F32", 1, 4, kF32},
    {kF16, "F16", 1, 2, kF16},
    {kQ4_0, "Q4_0", 32, 18, kQ8_0},
    {kQ4_1, "Q4_1", 32, 20, kQ8_1},
    {kQ5_0, "Q5_0", 32, 22, kQ8_0},
    {kQ5_1, "Q5_1", 32, 24, kQ8_1},
    {kQ8_0, "Q8_0", 32, 34, kQ8_0},
    {kQ8_1, "Q8_1", 32, 36, kQ8_1},
    {kQ2_K, "Q2_K", 256, 84, kQ8_K},
    {kQ3_K, "Q3_K", 256, 110, kQ8_K},
    {kQ4_K, "Q4_K", 256, 144, kQ8_K},
    {kQ5_K, "Q5_K", 256, 176, kQ8_K},
    {kQ6_K, "Q6_K", 256, 210, kQ8_K},
    {kQ8_K, "Q8_K", 256, 292, kQ8_K},
    {kIQ2_XXS, "IQ2_XXS", 256, 66, kQ8_K},
    {kIQ2_XS, "IQ2_XS", 256, 74, kQ8_K},
    {kIQ3_XXS, "IQ3_XXS", 256, 98, kQ8_K},
    {kIQ1_S, "IQ1_S", 256, 50, kQ8_K},
    {kIQ4_NL, "IQ4_NL", 32, 18, kQ8_0},
    {kIQ3_S, "IQ3_S", 256, 110, kQ8_K},
    {kIQ2_S, "IQ2_S", 256, 82, kQ8_K},
    {kIQ4_XS, "IQ4_XS", 256, 136, kQ8_K},
    {kI8, "I8", 1, 1, kI8},
    {kI16, "I16", 1, 2, kI16},
    {kI32, "I32", 1, 4, kI32},
    {kI64, "I64", 1, 8, kI64},
    {kF64, "F64", 1, 8, kF64},
    {kIQ1_M, "IQ1_M", 256, 56, kQ8_K},
    {kBF16, "BF16", 1, 2, kBF16},
    {kTQ1_0, "TQ1_0", 256, 54, kQ8_K},
    {kTQ2_0, "TQ2_0", 256, 66, kQ8_K},
    {kMXFP4, "MXFP4", 32, 17, kQ8_0},
    {kNVFP4, "NVFP4", 64, 36, kQ8_0},
    {kQ1_0, "Q1_0", 128, 18, kQ8_0},
    {kQ2_0, "Q2_0", 64, 18, kQ8_0},
};

}  // namespace

std::span<const TypeTraits> AllTypes() { return kTypes; }

const TypeTraits* FindType(uint32_t id) {
  for (const TypeTraits& t : kTypes) {
    if (static_cast<uint32_t>(t.type) == id) return &t;
  }
  return nullptr;
}

const TypeTraits& Traits(TensorType type) {
  const TypeTraits* t = FindType(static_cast<uint32_t>(type));
  CHECK(t != nullptr);
  return *t;
}

}  // namespace packtrain

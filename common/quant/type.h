#pragma once

// The tensor types of GGUF files: ids, names and block sizes. One table, read by the weight
// reader, the planner and every kernel.

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

namespace packtrain {

// Values are the ids stored in GGUF files.
enum class TensorType : uint32_t {
  kF32 = 0, kF16 = 1, kQ4_0 = 2, kQ4_1 = 3, kQ5_0 = 6, kQ5_1 = 7, kQ8_0 = 8, kQ8_1 = 9,
  kQ2_K = 10, kQ3_K = 11, kQ4_K = 12, kQ5_K = 13, kQ6_K = 14, kQ8_K = 15,
  kIQ2_XXS = 16, kIQ2_XS = 17, kIQ3_XXS = 18, kIQ1_S = 19, kIQ4_NL = 20, kIQ3_S = 21,
  kIQ2_S = 22, kIQ4_XS = 23, kI8 = 24, kI16 = 25, kI32 = 26, kI64 = 27, kF64 = 28,
  kIQ1_M = 29, kBF16 = 30, kTQ1_0 = 34, kTQ2_0 = 35, kMXFP4 = 39, kNVFP4 = 40, kQ1_0 = 41,
  kQ2_0 = 42,
};

struct TypeTraits {
  TensorType type;
  std::string_view name;    // as people write it: "IQ2_XXS"
  uint32_t block_weights;   // weights per block
  uint32_t block_bytes;     // bytes per block
  // What 8-bit kernels quantise the other operand to; the type itself for F32, F16, BF16, F64, I*.
  TensorType activation;
};

// All known types, ordered by id.
std::span<const TypeTraits> AllTypes();

// nullptr if `id` is not a type of this file format generation.
const TypeTraits* FindType(uint32_t id);

const TypeTraits& Traits(TensorType type);
inline std::string_view TypeName(TensorType type) { return Traits(type).name; }

// Bytes of a row of `weights` weights. REQUIRES: weights % block_weights == 0.
inline size_t RowBytes(TensorType type, size_t weights) {
  const TypeTraits& t = Traits(type);
  return weights / t.block_weights * t.block_bytes;
}

}  // namespace packtrain

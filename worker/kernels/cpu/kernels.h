#pragma once

// The CPU kernels of one instruction set, as a table of function pointers. Pure functions over
// memory that the caller owns; threads, buffers and shapes are the caller's business (worker/ops).
//
// Exact class: for one ISA, the result for (row, token) has the same bits however rows and tokens
// are grouped into calls. Every kernel accumulates in a fixed order along the row.

#include <cstddef>
#include <string_view>

#include "absl/status/statusor.h"
#include "common/quant/type.h"

namespace packtrain {

enum class Isa { kScalar, kAvx2, kAvx512 };

// Products of one weight type's rows with activations.
struct WeightKernel {
  // Kernels with equal layouts read the same prepared activations, so they are prepared once.
  int activation_layout = 0;
  // Bytes of one prepared activation row of n values; a multiple of 64.
  size_t (*activation_bytes)(size_t n) = nullptr;
  // Converts x [n] f32 into `activation` (64-byte aligned). REQUIRES: n % block_weights == 0.
  void (*prepare)(const float* x, size_t n, void* activation) = nullptr;
  // y[t][r] = sum over i of w[r, i] * x_t[i]
  //   w            `rows` rows of n weights in the file's layout, one behind the other, any alignment
  //   activations  [tokens] pointers to prepared rows
  //   y            [tokens] pointers to `rows` f32 each, overwritten
  // tokens >= 1, any rows. Few tokens are bound by memory: one pass over w.
  void (*mat_mul)(const void* w, size_t rows, size_t n, const void* const* activations,
                  size_t tokens, float* const* y) = nullptr;
};

struct CpuKernels {
  Isa isa = Isa::kScalar;
  std::string_view name;  // "scalar", "avx2", "avx512"
  // nullptr for types that are not weights (I8..I64).
  const WeightKernel* (*weight)(TensorType type) = nullptr;
};

// The variant to use: PACKTRAIN_ISA if `forced` is not empty, else the best this CPU and OS have.
// Errors: INVALID_ARGUMENT for an unknown name, FAILED_PRECONDITION if the CPU lacks it; both list
// what is available. The table lives for ever.
absl::StatusOr<const CpuKernels*> SelectCpuKernels(std::string_view forced);

}  // namespace packtrain

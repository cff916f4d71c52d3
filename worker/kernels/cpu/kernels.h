#pragma once

// The CPU kernels of one instruction set, as a table of function pointers. Pure functions over
// memory that the caller owns; threads, buffers and shapes are the caller's business (worker/ops).
//
// Exact class: for one ISA, the result for (row, token) has the same bits however rows and tokens
// are grouped into calls. Every kernel accumulates in a fixed order along the row.

#include <string_view>

#include "absl/status/statusor.h"
#include "common/quant/type.h"
#include "worker/kernels/cpu/vector_ops.h"
#include "worker/kernels/cpu/weight_kernel.h"

namespace packtrain {

enum class Isa { kScalar, kAvx2, kAvx512, kAvx512Gather };

struct CpuKernels {
  Isa isa = Isa::kScalar;
  std::string_view name;  // IsaName(isa)
  // nullptr for types that are not weights (I8..I64).
  const WeightKernel* (*weight)(TensorType type) = nullptr;
  const VectorOps* vector = nullptr;
};

// The variant to use: PACKTRAIN_ISA if `forced` is not empty, else the best this CPU and OS have.
// Errors: INVALID_ARGUMENT for an unknown name, FAILED_PRECONDITION if the CPU lacks it; both list
// what is available. The table lives for ever.
absl::StatusOr<const CpuKernels*> SelectCpuKernels(std::string_view forced);

}  // namespace packtrain

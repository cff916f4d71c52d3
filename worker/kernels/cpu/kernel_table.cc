#include <string>

#include "absl/status/status.h"
#include "worker/kernels/cpu/isa.h"
#include "worker/kernels/cpu/kernels.h"
#include "worker/kernels/cpu/variants.h"

namespace packtrain {
namespace {

// Best first.
constexpr CpuKernels kVariants[] = {
    {Isa::kAvx512Gather, "avx512_gather", Avx512GatherWeightKernel, &kVectorOpsAvx512},
    {Isa::kAvx512, "avx512", Avx512WeightKernel, &kVectorOpsAvx512},
    {Isa::kAvx2, "avx2", Avx2WeightKernel, &kVectorOpsAvx2},
    {Isa::kScalar, "scalar", ScalarWeightKernel, &kVectorOpsScalar},
};

std::string Available() {
  std::string names;
  for (const CpuKernels& variant : kVariants) {
    if (!IsaSupported(variant.isa)) continue;
    if (!names.empty()) names += ", ";
    names += variant.name;
  }
  return names;
}

}  // namespace

absl::StatusOr<const CpuKernels*> SelectCpuKernels(std::string_view forced) {
  const std::string setting = "PACKTRAIN_ISA=" + std::string(forced);
  for (const CpuKernels& variant : kVariants) {
    if (!forced.empty() && variant.name != forced) continue;
    if (IsaSupported(variant.isa)) return &variant;
    if (!forced.empty()) {
      return absl::FailedPreconditionError(
          setting + ": this CPU or OS lacks a part of it; available: " + Available());
    }
  }
  return absl::InvalidArgumentError(setting + ": unknown; available: " + Available());
}

}  // namespace packtrain

#include <cuda_runtime.h>

#include "worker/kernels/cuda/kernels.h"

namespace packtrain::cuda {

extern const WeightKernels kF32Kernels;
extern const WeightKernels kF16Kernels;
extern const WeightKernels kBF16Kernels;
extern const WeightKernels kQ4_0Kernels;
extern const WeightKernels kQ4_1Kernels;
extern const WeightKernels kQ5_0Kernels;
extern const WeightKernels kQ5_1Kernels;
extern const WeightKernels kQ8_0Kernels;
extern const WeightKernels kQ2_KKernels;
extern const WeightKernels kQ3_KKernels;
extern const WeightKernels kQ4_KKernels;
extern const WeightKernels kQ5_KKernels;
extern const WeightKernels kQ6_KKernels;
extern const WeightKernels kIQ1_SKernels;
extern const WeightKernels kIQ1_MKernels;
extern const WeightKernels kIQ2_XXSKernels;
extern const WeightKernels kIQ2_XSKernels;
extern const WeightKernels kIQ2_SKernels;
extern const WeightKernels kIQ3_XXSKernels;
extern const WeightKernels kIQ3_SKernels;
extern const WeightKernels kIQ4_NLKernels;
extern const WeightKernels kIQ4_XSKernels;
extern const WeightKernels kTQ1_0Kernels;
extern const WeightKernels kTQ2_0Kernels;
extern const WeightKernels kMXFP4Kernels;
extern const WeightKernels kNVFP4Kernels;
extern const WeightKernels kQ1_0Kernels;
extern const WeightKernels kQ2_0Kernels;

int UploadIQ1_S();
int UploadIQ1_M();
int UploadIQ2_XXS();
int UploadIQ2_XS();
int UploadIQ2_S();
int UploadIQ3_XXS();
int UploadIQ3_S();

const WeightKernels* FindWeightKernels(TensorType type) {
  static const WeightKernels* const kAll[] = {
      &kF32Kernels,     &kF16Kernels,    &kBF16Kernels,  &kQ4_0Kernels,    &kQ4_1Kernels,
      &kQ5_0Kernels,    &kQ5_1Kernels,   &kQ8_0Kernels,  &kQ2_KKernels,    &kQ3_KKernels,
      &kQ4_KKernels,    &kQ5_KKernels,   &kQ6_KKernels,  &kIQ1_SKernels,   &kIQ1_MKernels,
      &kIQ2_XXSKernels, &kIQ2_XSKernels, &kIQ2_SKernels, &kIQ3_XXSKernels, &kIQ3_SKernels,
      &kIQ4_NLKernels,  &kIQ4_XSKernels, &kTQ1_0Kernels, &kTQ2_0Kernels,   &kMXFP4Kernels,
      &kNVFP4Kernels,   &kQ1_0Kernels,   &kQ2_0Kernels,
  };
  for (const WeightKernels* kernels : kAll) {
    if (kernels->type == type) return kernels;
  }
  return nullptr;
}

int PrepareDevice() {
  int (*const kUploads[])() = {&UploadIQ1_S, &UploadIQ1_M,   &UploadIQ2_XXS, &UploadIQ2_XS,
                               &UploadIQ2_S, &UploadIQ3_XXS, &UploadIQ3_S};
  for (auto upload : kUploads) {
    if (int code = upload(); code != 0) return code;
  }
  return 0;
}

const char* ErrorText(int code) { return cudaGetErrorString(static_cast<cudaError_t>(code)); }

}  // namespace packtrain::cuda

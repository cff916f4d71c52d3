// Large products by cuBLASLt, with the algorithm it names first for a shape.

#include <cublasLt.h>

#include <map>
#include <mutex>
#include <tuple>

#include "worker/kernels/cuda/device.cuh"

namespace packtrain::cuda {
namespace {

// cuBLASLt is column-major: it computes C^T [n, m] from B^T and A^T.
struct Plan {
  cublasLtMatmulDesc_t product = nullptr;
  cublasLtMatrixLayout_t a = nullptr, b = nullptr, c = nullptr;
  cublasLtMatmulAlgo_t algorithm = {};
};

cublasLtHandle_t Handle() {
  static const cublasLtHandle_t handle = [] {
    cublasLtHandle_t h = nullptr;
    return cublasLtCreate(&h) == CUBLAS_STATUS_SUCCESS ? h : nullptr;
  }();
  return handle;
}

// Null where cuBLASLt has no way without a workspace. Plans live as long as the process.
const Plan* FindPlan(const GemmArgs& args) {
  static std::mutex mutex;
  static std::map<std::tuple<int, int, int, int, int>, Plan> plans;
  const std::lock_guard lock(mutex);
  const auto [it, added] = plans.try_emplace({args.m, args.n, args.k, args.lda, args.ldc});
  Plan& plan = it->second;
  if (!added) return plan.product != nullptr ? &plan : nullptr;
  const cublasOperation_t transposed = CUBLAS_OP_T;
  cublasLtMatmulPreference_t preference = nullptr;
  cublasLtMatmulHeuristicResult_t found = {};
  int count = 0;
  const bool ok = cublasLtMatmulDescCreate(&plan.product, CUBLAS_COMPUTE_32F, CUDA_R_32F) == 0 &&
                  cublasLtMatmulDescSetAttribute(plan.product, CUBLASLT_MATMUL_DESC_TRANSA,
                                                 &transposed, sizeof(transposed)) == 0 &&
                  cublasLtMatrixLayoutCreate(&plan.a, CUDA_R_16BF, args.k, args.n, args.k) == 0 &&
                  cublasLtMatrixLayoutCreate(&plan.b, CUDA_R_16BF, args.k, args.m, args.lda) == 0 &&
                  cublasLtMatrixLayoutCreate(&plan.c, CUDA_R_32F, args.n, args.m, args.ldc) == 0 &&
                  cublasLtMatmulPreferenceCreate(&preference) == 0 &&
                  cublasLtMatmulAlgoGetHeuristic(Handle(), plan.product, plan.a, plan.b, plan.c,
                                                 plan.c, preference, 1, &found, &count) == 0 &&
                  count == 1;
  if (preference != nullptr) cublasLtMatmulPreferenceDestroy(preference);
  if (!ok) {
    plan.product = nullptr;
    return nullptr;
  }
  plan.algorithm = found.algo;
  return &plan;
}

}  // namespace

int GemmBlasLt(const GemmArgs& args, Stream stream) {
  if (args.m == 0 || args.n == 0) return 0;
  if (Handle() == nullptr || args.groups != 1 || args.offsets != nullptr) {
    return static_cast<int>(cudaErrorInvalidValue);
  }
  const Plan* plan = FindPlan(args);
  if (plan == nullptr) return Gemm(args, stream);
  const float one = 1, zero = 0;
  const cublasStatus_t status =
      cublasLtMatmul(Handle(), plan->product, &one, args.b, plan->a, args.a, plan->b, &zero, args.c,
                     plan->c, args.c, plan->c, &plan->algorithm, nullptr, 0, stream);
  return status == CUBLAS_STATUS_SUCCESS ? LastLaunch() : static_cast<int>(cudaErrorUnknown);
}

}  // namespace packtrain::cuda

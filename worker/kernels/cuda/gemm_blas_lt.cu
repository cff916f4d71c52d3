// Large products by cuBLASLt, with the algorithm it names first for a shape.

#include <cublasLt.h>

#include <map>
#include <mutex>
#include <optional>
#include <tuple>

#include "worker/kernels/cuda/device.cuh"

namespace packtrain::cuda {
namespace {

constexpr size_t kMaxShapes = 4096;  // remembered; rows of ubatches come in all lengths
constexpr uint32_t kAlignment = 16;  // bytes, of all operands

cublasLtHandle_t Handle() {
  static const cublasLtHandle_t handle = [] {
    cublasLtHandle_t h = nullptr;
    return cublasLtCreate(&h) == CUBLAS_STATUS_SUCCESS ? h : nullptr;
  }();
  return handle;
}

// What cuBLASLt wants to know of a product. It is column-major: it computes C^T [n, m] from B^T and
// A^T.
struct Product {
  cublasLtMatmulDescOpaque_t operation;
  cublasLtMatrixLayoutOpaque_t a, b, c;

  // Whether cuBLASLt takes it.
  bool Init(const GemmArgs& args) {
    const cublasOperation_t transposed = CUBLAS_OP_T;
    return cublasLtMatmulDescInit(&operation, CUBLAS_COMPUTE_32F, CUDA_R_32F) == 0 &&
           cublasLtMatmulDescSetAttribute(&operation, CUBLASLT_MATMUL_DESC_TRANSA, &transposed,
                                          sizeof(transposed)) == 0 &&
           InitLayout(&a, CUDA_R_16BF, args.k, args.n, args.k, args.groups, args.b_group_stride) &&
           InitLayout(&b, CUDA_R_16BF, args.k, args.m, args.lda, args.groups,
                      args.a_group_stride) &&
           InitLayout(&c, args.c_bf16 != nullptr ? CUDA_R_16BF : CUDA_R_32F, args.n, args.m,
                      args.ldc, args.groups, args.c_group_stride);
  }

 private:
  static bool InitLayout(cublasLtMatrixLayout_t layout, cudaDataType type, int rows, int cols,
                         int stride, int32_t groups, size_t group_stride) {
    const auto offset = static_cast<int64_t>(group_stride);
    return cublasLtMatrixLayoutInit(layout, type, rows, cols, stride) == 0 &&
           cublasLtMatrixLayoutSetAttribute(layout, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &groups,
                                            sizeof(groups)) == 0 &&
           cublasLtMatrixLayoutSetAttribute(layout, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET,
                                            &offset, sizeof(offset)) == 0;
  }
};

// Nothing where cuBLASLt has no way without a workspace.
std::optional<cublasLtMatmulAlgo_t> ChooseAlgorithm(Product* product) {
  cublasLtMatmulPreferenceOpaque_t preference;
  cublasLtMatmulHeuristicResult_t found = {};
  int count = 0;
  bool ok = cublasLtMatmulPreferenceInit(&preference) == 0;
  for (const auto operand :
       {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES}) {
    ok = ok && cublasLtMatmulPreferenceSetAttribute(&preference, operand, &kAlignment,
                                                    sizeof(kAlignment)) == 0;
  }
  ok = ok &&
       cublasLtMatmulAlgoGetHeuristic(Handle(), &product->operation, &product->a, &product->b,
                                      &product->c, &product->c, &preference, 1, &found,
                                      &count) == 0 &&
       count == 1;
  if (!ok) return std::nullopt;
  return found.algo;
}

std::optional<cublasLtMatmulAlgo_t> FindAlgorithm(const GemmArgs& args, Product* product) {
  using Shape = std::tuple<int, int, int, int, int, int, size_t, size_t, size_t, bool>;
  static std::mutex mutex;
  static std::map<Shape, std::optional<cublasLtMatmulAlgo_t>> known;
  const Shape shape = {args.m,
                       args.n,
                       args.k,
                       args.lda,
                       args.ldc,
                       args.groups,
                       args.a_group_stride,
                       args.b_group_stride,
                       args.c_group_stride,
                       args.c_bf16 != nullptr};
  const std::lock_guard lock(mutex);
  if (const auto found = known.find(shape); found != known.end()) return found->second;
  if (known.size() == kMaxShapes) known.clear();
  return known[shape] = ChooseAlgorithm(product);
}

bool Aligned(const GemmArgs& args) {
  const auto aligned = [](const void* p) {
    return reinterpret_cast<uintptr_t>(p) % kAlignment == 0;
  };
  return aligned(args.a) && aligned(args.b) && aligned(args.c) && aligned(args.c_bf16);
}

}  // namespace

int GemmBlasLt(const GemmArgs& args, Stream stream) {
  if (args.offsets != nullptr || args.row_index != nullptr) {
    return static_cast<int>(cudaErrorInvalidValue);
  }
  if (args.m == 0 || args.n == 0) return 0;
  Product product;
  std::optional<cublasLtMatmulAlgo_t> algorithm;
  if (Handle() != nullptr && Aligned(args) && product.Init(args)) {
    algorithm = FindAlgorithm(args, &product);
  }
  if (!algorithm) return Gemm(args, stream);
  const float one = 1, zero = 0;
  void* const c = args.c_bf16 != nullptr ? static_cast<void*>(args.c_bf16) : args.c;
  const cublasStatus_t status =
      cublasLtMatmul(Handle(), &product.operation, &one, args.b, &product.a, args.a, &product.b,
                     &zero, c, &product.c, c, &product.c, &*algorithm, nullptr, 0, stream);
  return status == CUBLAS_STATUS_SUCCESS ? LastLaunch() : static_cast<int>(cudaErrorUnknown);
}

}  // namespace packtrain::cuda

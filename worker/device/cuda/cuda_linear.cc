// Products of weights with activations: mat-vec kernels for few rows, else unpacked weights and the
// tensor cores.

#include <algorithm>

#include "common/base/check.h"
#include "worker/device/cuda/cuda_run.h"

namespace packtrain {
namespace {

const void* MatVecInput(const DeviceMatrix& w, const DeviceActivations& x) {
  return w.kernels->f32_activations ? static_cast<const void*>(x.f32) : x.q8;
}

cuda::MatVecPart Part(const DeviceMatrix& w, float* y, int y_stride = 0) {
  return {.w = w.data, .expert_stride = 0, .y = y, .y_stride = y_stride, .rows = w.rows};
}

}  // namespace

bool ReadsBf16(const DeviceMatrix& w) {
  return w.kernels->type != TensorType::kF32 && w.cols % 32 == 0;
}

void DeviceLinear(CudaRun* run, const DeviceMatrix& w, const DeviceActivations& x, float* y,
                  int y_stride) {
  if (y_stride == 0) y_stride = w.rows;
  if (x.rows <= kDecodeRows) {
    cuda::MatVecArgs args;
    args.parts[0] = Part(w, y, y_stride);
    args.n = w.cols;
    args.x = MatVecInput(w, x);
    args.tokens = x.rows;
    LAUNCH(run, w.kernels->mat_vec(args, run->stream));
    return;
  }
  if (w.kernels->type == TensorType::kF32) {
    LAUNCH(run, cuda::GemmF32(x.f32, reinterpret_cast<const float*>(w.data), y, x.rows, w.rows,
                              w.cols, y_stride, run->stream));
    return;
  }
  if (!ReadsBf16(w)) {
    // Rows that are no multiple of 32 exist as F16 and BF16 only, in small matrices.
    for (int row = 0; row < x.rows; row += kDecodeRows) {
      cuda::MatVecArgs args;
      args.parts[0] =
          Part(w, y + static_cast<size_t>(row) * static_cast<size_t>(y_stride), y_stride);
      args.n = w.cols;
      args.x = x.f32 + static_cast<size_t>(row) * static_cast<size_t>(x.n);
      args.tokens = std::min(kDecodeRows, x.rows - row);
      LAUNCH(run, w.kernels->mat_vec(args, run->stream));
    }
    return;
  }
  // As many rows of w at a time as there is room for; 64 keep the parts of y aligned.
  const auto fit = static_cast<int>(run->unpacked_capacity / static_cast<size_t>(w.cols) / 64 * 64);
  for (int row = 0; row < w.rows; row += fit) {
    const int part = std::min(fit, w.rows - row);
    LAUNCH(run, w.kernels->decode_bf16(w.data + static_cast<size_t>(row) * w.row_bytes(),
                                       static_cast<size_t>(part) * static_cast<size_t>(w.cols),
                                       run->unpacked, run->stream));
    LAUNCH(run, cuda::GemmBlasLt({.a = x.bf16,
                                  .lda = x.n,
                                  .b = run->unpacked,
                                  .c = y + row,
                                  .ldc = y_stride,
                                  .m = x.rows,
                                  .n = part,
                                  .k = w.cols},
                                 run->stream));
  }
}

void DeviceLinears(CudaRun* run, const DeviceActivations& x,
                   std::initializer_list<DeviceProduct> products) {
  if (x.rows > kDecodeRows) {
    for (const DeviceProduct& product : products) DeviceLinear(run, *product.w, x, product.y);
    return;
  }
  CHECK(products.size() <= size_t{cuda::kMaxMatVecParts});
  bool done[cuda::kMaxMatVecParts] = {};
  for (size_t i = 0; i < products.size(); ++i) {
    const DeviceMatrix& first = *products.begin()[i].w;
    cuda::MatVecArgs args;
    args.num_parts = 0;
    for (size_t k = i; k < products.size(); ++k) {
      const DeviceProduct& product = products.begin()[k];
      if (done[k] || product.w->kernels != first.kernels) continue;
      args.parts[args.num_parts++] = Part(*product.w, product.y);
      done[k] = true;
    }
    if (args.num_parts == 0) continue;
    args.n = first.cols;
    args.x = MatVecInput(first, x);
    args.tokens = x.rows;
    LAUNCH(run, first.kernels->mat_vec(args, run->stream));
  }
}

void DeviceLinearPerHead(CudaRun* run, const DeviceMatrix& w, int heads, const DeviceActivations& x,
                         const cuda::ActivationOut& y) {
  const int rows = w.rows / heads, y_stride = y.f32_stride != 0 ? y.f32_stride : rows;
  if (run->decode() || !ReadsBf16(w)) {
    cuda::MatVecArgs args;
    args.parts[0] = {.w = w.data,
                     .expert_stride = static_cast<size_t>(rows) * w.row_bytes(),
                     .y = y.f32,
                     .y_stride = y_stride,
                     .rows = rows};
    args.n = w.cols;
    args.x = MatVecInput(w, x);
    args.tokens = x.rows;
    args.experts = true;
    args.num_experts = heads;
    LAUNCH(run, w.kernels->mat_vec(args, run->stream));
    return;
  }
  const size_t matrix = static_cast<size_t>(rows) * static_cast<size_t>(w.cols);
  const int fit = std::max(1, static_cast<int>(run->unpacked_capacity / matrix));
  for (int head = 0; head < heads; head += fit) {
    const int part = std::min(fit, heads - head);
    LAUNCH(run, w.kernels->decode_bf16(
                    w.data + static_cast<size_t>(head) * static_cast<size_t>(rows) * w.row_bytes(),
                    static_cast<size_t>(part) * matrix, run->unpacked, run->stream));
    const size_t first = static_cast<size_t>(head) * static_cast<size_t>(y_stride);
    LAUNCH(run,
           cuda::GemmBlasLt({.a = x.bf16 + static_cast<size_t>(head) * static_cast<size_t>(w.cols),
                             .lda = heads * w.cols,
                             .a_group_stride = static_cast<size_t>(w.cols),
                             .b = run->unpacked,
                             .b_group_stride = matrix,
                             .c = y.f32 != nullptr ? y.f32 + first : nullptr,
                             .c_bf16 = y.bf16 != nullptr ? y.bf16 + first : nullptr,
                             .ldc = heads * y_stride,
                             .c_group_stride = static_cast<size_t>(y_stride),
                             .groups = part,
                             .m = x.rows / heads,
                             .n = rows,
                             .k = w.cols},
                            run->stream));
  }
}

}  // namespace packtrain

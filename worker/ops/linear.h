#pragma once

// Products of weight matrices with activation rows, split over the threads.

#include <cstddef>
#include <cstdlib>
#include <memory>
#include <span>
#include <vector>

#include "common/tensor/matrix_view.h"
#include "worker/kernels/cpu/kernels.h"
#include "worker/ops/thread_pool.h"

namespace packtrain {

// What every op needs to run; borrowed.
struct OpContext {
  const CpuKernels* kernels = nullptr;
  ThreadPool* pool = nullptr;
};

// Activation rows of equal length, converted on demand into what each kernel reads; kernels with
// equal layouts share the conversion. The memory is kept from one use to the next.
class Activations {
 public:
  // Row i is x[i * stride .. + cols). The floats must stay as they are until the next Reset.
  void Reset(const float* x, size_t rows, size_t cols, size_t stride);
  void Reset(const float* x, size_t rows, size_t cols) { Reset(x, rows, cols, cols); }

  // Converts the rows for `kernel` unless done since the last Reset.
  void Prepare(const OpContext& context, const WeightKernel& kernel);
  // Row i as last prepared for `kernel`.
  const void* Row(const WeightKernel& kernel, size_t i) const;

  size_t rows() const { return rows_; }
  size_t cols() const { return cols_; }

 private:
  struct FreeDeleter {
    void operator()(std::byte* p) const { std::free(p); }
  };
  struct Layout {
    int id = 0;
    bool valid = false;
    size_t row_bytes = 0;
    size_t capacity = 0;
    std::unique_ptr<std::byte, FreeDeleter> bytes;
  };
  Layout* Find(int id);

  const float* x_ = nullptr;
  size_t rows_ = 0, cols_ = 0, stride_ = 0;
  std::vector<Layout> layouts_;
};

const WeightKernel& KernelOf(const OpContext& context, TensorType type);

// y[t * y_stride + r] = sum over i of w[r, i] * x[t][i]
//   w  [rows, cols], x [tokens] rows of cols, y [tokens] rows of w.rows at a distance of y_stride
void Linear(const OpContext& context, const MatrixView& w, Activations* x, float* y,
            size_t y_stride);
inline void Linear(const OpContext& context, const MatrixView& w, Activations* x, float* y) {
  Linear(context, w, x, y, w.rows);
}

// The same for each head with a matrix of its own:
//   w  [heads * rows, cols]: `heads` matrices one behind the other
//   x  [tokens * heads] rows, head fastest
//   y  [tokens * heads] rows of `rows` values at a distance of y_stride
void LinearPerHead(const OpContext& context, const MatrixView& w, size_t heads, Activations* x,
                   float* y, size_t y_stride);

}  // namespace packtrain

#pragma once

// Products of weight matrices with activation rows, split over the threads.

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <initializer_list>
#include <memory>
#include <vector>

#include "absl/container/inlined_vector.h"
#include "absl/functional/function_ref.h"
#include "common/tensor/matrix_view.h"
#include "worker/kernels/cpu/kernels.h"
#include "worker/ops/thread_pool.h"

namespace packtrain {

// Rows in tasks, in their order. The first take an eighth of a thread's share each, as every start
// costs something, the later ones ever less, so that the threads end together however many they are
// and however fast each of them is.
class RowTasks {
 public:
  // Tasks of `least` rows, rounded up to a multiple of kMultiple, to `most` rows, rounded down but
  // not below that; the last may have any number.
  RowTasks(size_t rows, size_t threads, size_t least, size_t most);

  size_t size() const { return begin_.size() - 1; }
  size_t begin(size_t task) const { return begin_[task]; }
  size_t end(size_t task) const { return begin_[task + 1]; }

  static constexpr size_t kMultiple = 16;  // the most rows that kernels take at once

 private:
  absl::InlinedVector<size_t, 256> begin_;  // and the end of the last
};

// What every op needs to run; borrowed.
struct OpContext {
  const CpuKernels* kernels = nullptr;
  ThreadPool* pool = nullptr;

  const VectorOps& vector() const { return *kernels->vector; }

  // Least work of a task that is worth another thread, in multiply-adds of a matrix product with
  // few tokens, of which a core does some 30 a nanosecond.
  size_t min_task_work() const { return size_t{1} << (pool->spins() ? 16 : 19); }
  // As pool->ParallelFor, but on the calling thread alone if all tasks together are too little.
  void ParallelFor(size_t count, size_t total_work, absl::FunctionRef<void(int, int)> task) const;
  // `rows` equal pieces of work, each `row_work`, in tasks of at most `most` that are worth it.
  RowTasks Split(size_t rows, size_t row_work, size_t most = SIZE_MAX) const;
};

// Work of one value of an op that passes over its values once, in the unit of min_task_work.
inline constexpr size_t kValueWork = 8;

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
  const void* Row(const WeightKernel& kernel, size_t i) const { return Rows(kernel)[i]; }
  const void* const* Rows(const WeightKernel& kernel) const;

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
    std::vector<const void*> rows;
  };
  Layout* Find(int id);

  const float* x_ = nullptr;
  size_t rows_ = 0, cols_ = 0, stride_ = 0;
  std::vector<Layout> layouts_;
};

const WeightKernel& KernelOf(const OpContext& context, TensorType type);

// kernel.mat_mul for any number of tokens, so many at a time that their activations stay in the
// core's cache while the weights pass.
void MatMulInCache(const WeightKernel& kernel, const MatrixView& w, const void* const* x,
                   size_t tokens, float* const* y);

struct LinearOutput {
  MatrixView w;
  float* y = nullptr;
};

// For each output y[t * w.rows + r] = sum over i of w[r, i] * x[t][i]
//   w  [rows, cols], x [tokens] rows of cols, y [tokens, w.rows]
void LinearMany(const OpContext& context, std::initializer_list<LinearOutput> outputs,
                Activations* x);
inline void Linear(const OpContext& context, const MatrixView& w, Activations* x, float* y) {
  LinearMany(context, {{w, y}}, x);
}

// The same for each head with a matrix of its own:
//   w  [heads * rows, cols]: `heads` matrices one behind the other
//   x  [tokens * heads] rows, head fastest
//   y  [tokens * heads] rows of `rows` values at a distance of y_stride
void LinearPerHead(const OpContext& context, const MatrixView& w, size_t heads, Activations* x,
                   float* y, size_t y_stride);

}  // namespace packtrain

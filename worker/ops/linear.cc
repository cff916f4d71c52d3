#include "worker/ops/linear.h"

#include <algorithm>
#include <cstdlib>

#include "absl/container/inlined_vector.h"
#include "common/base/check.h"

namespace packtrain {
namespace {

// Rows of one task: few enough that all threads get some, enough to be worth a task.
size_t TaskRows(const OpContext& context, size_t rows) {
  const auto threads = static_cast<size_t>(context.pool->num_threads());
  return std::max<size_t>(16, (rows + 4 * threads - 1) / (4 * threads));
}

struct Pointers {
  absl::InlinedVector<const void*, 32> x;
  absl::InlinedVector<float*, 32> y;
};

}  // namespace

void Activations::Reset(const float* x, size_t rows, size_t cols, size_t stride) {
  x_ = x;
  rows_ = rows;
  cols_ = cols;
  stride_ = stride;
  for (Layout& layout : layouts_) layout.valid = false;
}

Activations::Layout* Activations::Find(int id) {
  for (Layout& layout : layouts_) {
    if (layout.id == id) return &layout;
  }
  return nullptr;
}

void Activations::Prepare(const OpContext& context, const WeightKernel& kernel) {
  Layout* layout = Find(kernel.activation_layout);
  if (layout == nullptr) {
    layout = &layouts_.emplace_back();
    layout->id = kernel.activation_layout;
  }
  if (layout->valid) return;
  layout->row_bytes = kernel.activation_bytes(cols_);
  const size_t bytes = layout->row_bytes * rows_;
  if (bytes > layout->capacity) {
    layout->bytes.reset(static_cast<std::byte*>(std::aligned_alloc(64, bytes)));
    CHECK_MSG(layout->bytes != nullptr, "out of memory for activations");
    layout->capacity = bytes;
  }
  layout->valid = true;
  const size_t task_rows = std::max<size_t>(1, 4096 / std::max<size_t>(1, cols_));
  const size_t tasks = (rows_ + task_rows - 1) / task_rows;
  context.pool->ParallelFor(static_cast<int>(tasks), [&](int task, int) {
    const size_t first = static_cast<size_t>(task) * task_rows;
    for (size_t i = first; i < std::min(rows_, first + task_rows); ++i) {
      kernel.prepare(x_ + i * stride_, cols_, layout->bytes.get() + i * layout->row_bytes);
    }
  });
}

const void* Activations::Row(const WeightKernel& kernel, size_t i) const {
  for (const Layout& layout : layouts_) {
    if (layout.id == kernel.activation_layout) return layout.bytes.get() + i * layout.row_bytes;
  }
  return nullptr;
}

const WeightKernel& KernelOf(const OpContext& context, TensorType type) {
  const WeightKernel* kernel = context.kernels->weight(type);
  CHECK_MSG(kernel != nullptr, "weights of this type are refused at load");
  return *kernel;
}

void Linear(const OpContext& context, const MatrixView& w, Activations* x, float* y,
            size_t y_stride) {
  CHECK(w.cols == x->cols());
  if (x->rows() == 0) return;
  const WeightKernel& kernel = KernelOf(context, w.type);
  x->Prepare(context, kernel);
  const size_t task_rows = TaskRows(context, w.rows);
  const size_t tasks = (w.rows + task_rows - 1) / task_rows;
  const size_t row_bytes = w.row_bytes();
  context.pool->ParallelFor(static_cast<int>(tasks), [&](int task, int) {
    const size_t first = static_cast<size_t>(task) * task_rows;
    Pointers pointers;
    for (size_t t = 0; t < x->rows(); ++t) {
      pointers.x.push_back(x->Row(kernel, t));
      pointers.y.push_back(y + t * y_stride + first);
    }
    kernel.mat_mul(w.data + first * row_bytes, std::min(task_rows, w.rows - first), w.cols,
                   pointers.x.data(), x->rows(), pointers.y.data());
  });
}

void LinearPerHead(const OpContext& context, const MatrixView& w, size_t heads, Activations* x,
                   float* y, size_t y_stride) {
  CHECK(w.cols == x->cols() && w.rows % heads == 0 && x->rows() % heads == 0);
  const size_t tokens = x->rows() / heads;
  if (tokens == 0) return;
  const size_t rows = w.rows / heads;
  const WeightKernel& kernel = KernelOf(context, w.type);
  x->Prepare(context, kernel);
  context.pool->ParallelFor(static_cast<int>(heads), [&](int task, int) {
    const auto head = static_cast<size_t>(task);
    Pointers pointers;
    for (size_t t = 0; t < tokens; ++t) {
      pointers.x.push_back(x->Row(kernel, t * heads + head));
      pointers.y.push_back(y + (t * heads + head) * y_stride);
    }
    const MatrixView of_head = w.Rows(head * rows, rows);
    kernel.mat_mul(of_head.data, rows, w.cols, pointers.x.data(), tokens, pointers.y.data());
  });
}

}  // namespace packtrain

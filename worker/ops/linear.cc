#include "worker/ops/linear.h"

#include <algorithm>
#include <cstdlib>

#include "absl/container/inlined_vector.h"
#include "common/base/check.h"

namespace packtrain {
namespace {

// What activations may take for each row of a kernel's panels: panels of few rows want them in a
// core's second-level cache, those of many use them long enough to come from further away.
constexpr size_t kCachedActivationBytes = size_t{64} << 10;
// Weights that are read again for each part of the tokens, from that cache.
constexpr size_t kCachedWeightBytes = size_t{1} << 20;

// How many tokens are multiplied at a time at most.
size_t TokensInCache(const WeightKernel& kernel, size_t cols) {
  constexpr size_t kLeast = 16, kMost = 64;  // a kernel's tiles want some, and take no more at once
  const size_t bytes = kernel.panel_rows * kCachedActivationBytes;
  return std::clamp(bytes / kernel.activation_bytes(cols) / 2 * 2, kLeast, kMost);
}

}  // namespace

void OpContext::ParallelFor(size_t count, size_t total_work,
                            absl::FunctionRef<void(int, int)> task) const {
  if (total_work >= 2 * min_task_work()) return pool->ParallelFor(static_cast<int>(count), task);
  for (size_t i = 0; i < count; ++i) task(static_cast<int>(i), 0);
}

RowTasks OpContext::Split(size_t rows, size_t row_work, size_t most) const {
  return RowTasks(rows, static_cast<size_t>(pool->num_threads()),
                  min_task_work() / std::max<size_t>(1, row_work), most);
}

RowTasks::RowTasks(size_t rows, size_t threads, size_t least, size_t most) {
  const auto rounded = [](size_t n) { return (n + kMultiple - 1) / kMultiple * kMultiple; };
  const size_t share = rows / threads + 1;
  least = rounded(std::max<size_t>(1, least));
  most = std::max(least, std::min(rounded(share / 8 + 1), most / kMultiple * kMultiple));
  size_t begin = 0;
  for (; begin < rows; begin += std::clamp(rounded((rows - begin) / threads / 2), least, most)) {
    begin_.push_back(begin);
  }
  begin_.push_back(rows);
}

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
  layout->rows.resize(rows_);
  for (size_t i = 0; i < rows_; ++i) layout->rows[i] = layout->bytes.get() + i * layout->row_bytes;
  const size_t row_work = kValueWork * cols_;
  const RowTasks tasks = context.Split(rows_, row_work);
  context.ParallelFor(tasks.size(), rows_ * row_work, [&](int task, int) {
    const auto t = static_cast<size_t>(task);
    for (size_t i = tasks.begin(t); i < tasks.end(t); ++i) {
      kernel.prepare(x_ + i * stride_, cols_, layout->bytes.get() + i * layout->row_bytes);
    }
  });
}

const void* const* Activations::Rows(const WeightKernel& kernel) const {
  for (const Layout& layout : layouts_) {
    if (layout.id == kernel.activation_layout) return layout.rows.data();
  }
  return nullptr;
}

const WeightKernel& KernelOf(const OpContext& context, TensorType type) {
  const WeightKernel* kernel = context.kernels->weight(type);
  CHECK_MSG(kernel != nullptr, "weights of this type are refused at load");
  return *kernel;
}

void MatMulInCache(const WeightKernel& kernel, const MatrixView& w, const void* const* x,
                   size_t tokens, float* const* y) {
  const size_t most = TokensInCache(kernel, w.cols);
  const size_t passes = (tokens + most - 1) / most;
  const size_t at_once = passes == 0 ? 0 : (tokens + passes - 1) / passes;
  for (size_t t = 0; t < tokens; t += at_once) {
    kernel.mat_mul(w.data, w.rows, w.cols, x + t, std::min(at_once, tokens - t), y + t);
  }
}

void LinearMany(const OpContext& context, std::initializer_list<LinearOutput> outputs,
                Activations* x) {
  const size_t tokens = x->rows();
  if (tokens == 0) return;
  size_t rows = 0;
  for (const LinearOutput& output : outputs) {
    CHECK(output.w.cols == x->cols());
    x->Prepare(context, KernelOf(context, output.w.type));
    rows += output.w.rows;
  }
  const size_t row_work = tokens * x->cols();
  size_t most = SIZE_MAX;
  for (const LinearOutput& output : outputs) {
    if (tokens <= TokensInCache(KernelOf(context, output.w.type), x->cols())) continue;
    most = std::min(most, kCachedWeightBytes / output.w.row_bytes());
  }
  // The rows of all outputs, one output behind the other.
  const RowTasks tasks = context.Split(rows, row_work, most);
  context.ParallelFor(tasks.size(), rows * row_work, [&](int i, int) {
    const auto task = static_cast<size_t>(i);
    absl::InlinedVector<float*, 64> y(tokens);
    size_t before = 0;
    for (const LinearOutput& output : outputs) {
      const size_t first = std::max(tasks.begin(task), before) - before;
      const size_t last =
          std::min(tasks.end(task) - std::min(tasks.end(task), before), output.w.rows);
      before += output.w.rows;
      if (first >= last) continue;
      const WeightKernel& kernel = KernelOf(context, output.w.type);
      for (size_t t = 0; t < tokens; ++t) y[t] = output.y + t * output.w.rows + first;
      MatMulInCache(kernel, output.w.Rows(first, last - first), x->Rows(kernel), tokens, y.data());
    }
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
  context.ParallelFor(heads, tokens * w.rows * w.cols, [&](int task, int) {
    const auto head = static_cast<size_t>(task);
    absl::InlinedVector<const void*, 64> head_x(tokens);
    absl::InlinedVector<float*, 64> head_y(tokens);
    for (size_t t = 0; t < tokens; ++t) {
      head_x[t] = x->Row(kernel, t * heads + head);
      head_y[t] = y + (t * heads + head) * y_stride;
    }
    const MatrixView of_head = w.Rows(head * rows, rows);
    MatMulInCache(kernel, of_head, head_x.data(), tokens, head_y.data());
  });
}

}  // namespace packtrain

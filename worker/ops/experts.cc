#include "worker/ops/experts.h"

#include <algorithm>

#include "absl/container/inlined_vector.h"
#include "absl/strings/str_format.h"
#include "common/base/status_macros.h"
#include "worker/ops/vector_math.h"

namespace packtrain {
namespace {

// Bounds how much of a task's results lies about at a time. Each task reads all picks' activations,
// so that many small ones would take more of the memory's time than their results, once each.
constexpr size_t kResultBytes = size_t{4} << 20;

}  // namespace

LocalExperts::LocalExperts(const OpContext& context, int first_layer,
                           std::vector<ExpertWeights> layers)
    : context_(context), first_layer_(first_layer), layers_(std::move(layers)) {
  down_.resize(static_cast<size_t>(context_.pool->num_threads()));
}

bool LocalExperts::Holds(int layer) const {
  const int i = layer - first_layer_;
  return i >= 0 && i < static_cast<int>(layers_.size()) &&
         !layers_[static_cast<size_t>(i)].down.empty();
}

absl::Status LocalExperts::Compute(const ExpertsRequest& request, float* y) {
  if (!Holds(request.layer)) {
    return absl::InvalidArgumentError(
        absl::StrFormat("no experts of layer %d are held here", request.layer));
  }
  const ExpertWeights& weights = layers_[static_cast<size_t>(request.layer - first_layer_)];
  if (static_cast<size_t>(request.hidden_dim) != weights.gate.cols) {
    return absl::InvalidArgumentError(
        absl::StrFormat("layer %d: activations of %d values, the experts take %d", request.layer,
                        request.hidden_dim, weights.gate.cols));
  }
  RETURN_IF_ERROR(Sort(request, weights));
  x_.Reset(request.x, static_cast<size_t>(request.tokens), weights.gate.cols);
  ComputeInner(weights);
  ComputeDown(request, weights, y);
  return absl::OkStatus();
}

absl::Status LocalExperts::Sort(const ExpertsRequest& request, const ExpertWeights& weights) {
  const int picks = request.tokens * request.top_k;
  const int limit = static_cast<int>(weights.num_experts);
  order_.clear();
  for (int pick = 0; pick < picks; ++pick) {
    if (request.ids[pick] >= limit) {
      return absl::InvalidArgumentError(absl::StrFormat("layer %d: expert %d of %d was asked for",
                                                        request.layer, request.ids[pick], limit));
    }
    if (request.ids[pick] >= 0) order_.push_back(pick);
  }
  std::stable_sort(order_.begin(), order_.end(),
                   [&](int a, int b) { return request.ids[a] < request.ids[b]; });
  place_.assign(static_cast<size_t>(picks), -1);
  groups_.clear();
  rows_.clear();
  for (int i = 0; i < static_cast<int>(order_.size()); ++i) {
    const int pick = order_[static_cast<size_t>(i)];
    place_[static_cast<size_t>(pick)] = i;
    rows_.push_back(pick / request.top_k);
    const int32_t expert = request.ids[pick];
    if (groups_.empty() || groups_.back().expert != expert) groups_.push_back({expert, i, i});
    groups_.back().last = i + 1;
  }
  return absl::OkStatus();
}

void LocalExperts::ComputeInner(const ExpertWeights& weights) {
  const size_t dim = weights.expert_dim;
  gate_.resize(order_.size() * dim);
  up_.resize(order_.size() * dim);
  const WeightKernel& gate_kernel = KernelOf(context_, weights.gate.type);
  const WeightKernel& up_kernel = KernelOf(context_, weights.up.type);
  x_.Prepare(context_, gate_kernel);
  x_.Prepare(context_, up_kernel);
  const size_t row_work =
      2 * weights.gate.cols * order_.size() / std::max<size_t>(1, groups_.size());
  // The rows of all groups, one group behind the other.
  const RowTasks tasks = context_.Split(groups_.size() * dim, row_work);
  const size_t work = 2 * order_.size() * dim * weights.gate.cols;
  context_.ParallelFor(tasks.size(), work, [&](int task, int) {
    const size_t end = tasks.end(static_cast<size_t>(task));
    absl::InlinedVector<const void*, 32> gate_x, up_x;
    absl::InlinedVector<float*, 32> gate_y, up_y;
    for (size_t begin = tasks.begin(static_cast<size_t>(task)); begin < end;) {
      const Group& group = groups_[begin / dim];
      const size_t first = begin % dim, rows = std::min(end - begin, dim - first);
      begin += rows;
      gate_x.clear();
      up_x.clear();
      gate_y.clear();
      up_y.clear();
      for (auto i = static_cast<size_t>(group.first); i < static_cast<size_t>(group.last); ++i) {
        gate_x.push_back(x_.Row(gate_kernel, static_cast<size_t>(rows_[i])));
        up_x.push_back(x_.Row(up_kernel, static_cast<size_t>(rows_[i])));
        gate_y.push_back(gate_.data() + i * dim + first);
        up_y.push_back(up_.data() + i * dim + first);
      }
      const size_t row = static_cast<size_t>(group.expert) * weights.row_stride + first;
      MatMulInCache(gate_kernel, weights.gate.Rows(row, rows), gate_x.data(), gate_x.size(),
                    gate_y.data());
      MatMulInCache(up_kernel, weights.up.Rows(row, rows), up_x.data(), up_x.size(), up_y.data());
      for (size_t i = 0; i < gate_y.size(); ++i) {
        context_.vector().swiglu(gate_y[i], up_y[i], rows, gate_y[i]);
      }
    }
  });
}

// A task computes some rows of every pick's result and adds them up, so the down matrices are read
// once and nothing of size picks * hidden_dim is kept.
void LocalExperts::ComputeDown(const ExpertsRequest& request, const ExpertWeights& weights,
                               float* y) {
  const size_t dim = weights.expert_dim;
  const auto hidden = static_cast<size_t>(request.hidden_dim);
  const auto top_k = static_cast<size_t>(request.top_k);
  const WeightKernel& kernel = KernelOf(context_, weights.down.type);
  inner_.Reset(gate_.data(), order_.size(), dim);
  if (order_.empty()) {
    std::fill_n(y, static_cast<size_t>(request.tokens) * hidden, 0.0F);
    return;
  }
  inner_.Prepare(context_, kernel);
  const size_t row_work = order_.size() * dim;
  const RowTasks tasks =
      context_.Split(hidden, row_work, kResultBytes / sizeof(float) / order_.size());
  context_.ParallelFor(tasks.size(), hidden * row_work, [&](int task, int thread) {
    const size_t first = tasks.begin(static_cast<size_t>(task));
    const size_t rows = tasks.end(static_cast<size_t>(task)) - first;
    std::vector<float>& results = down_[static_cast<size_t>(thread)];
    results.resize(order_.size() * rows);
    absl::InlinedVector<float*, 32> out;
    for (const Group& group : groups_) {
      out.clear();
      for (auto i = static_cast<size_t>(group.first); i < static_cast<size_t>(group.last); ++i) {
        out.push_back(results.data() + i * rows);
      }
      const size_t row = static_cast<size_t>(group.expert) * hidden + first;
      MatMulInCache(kernel, weights.down.Rows(row, rows), inner_.Rows(kernel) + group.first,
                    out.size(), out.data());
    }
    for (size_t t = 0; t < static_cast<size_t>(request.tokens); ++t) {
      float* sum = y + t * hidden + first;
      std::fill_n(sum, rows, 0.0F);
      for (size_t rank = 0; rank < top_k; ++rank) {
        const size_t pick = t * top_k + rank;
        if (place_[pick] < 0) continue;
        AddScaled(sum, results.data() + static_cast<size_t>(place_[pick]) * rows,
                  request.weights[pick], rows);
      }
    }
  });
}

}  // namespace packtrain

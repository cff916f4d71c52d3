#include "worker/device/measure_experts.h"

#include <algorithm>
#include <chrono>
#include <iterator>
#include <optional>
#include <utility>

#include "common/quant/type.h"
#include "worker/device/measured_types.h"
#include "worker/device/weight_memory.h"
#include "worker/ops/experts.h"

namespace packtrain {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kTopK = 8;

struct Shape {
  size_t hidden = 0;
  size_t dim = 0;
};
constexpr Shape kLarge = {.hidden = 6144, .dim = 1024};
constexpr Shape kTiny = {.hidden = 256, .dim = 256};

size_t MatrixBytes(TensorType type, const Shape& shape) {
  return shape.dim * RowBytes(type, shape.hidden);
}

// As many experts of one type as `bytes` have room for, all matrices alike.
ExpertWeights ExpertsIn(const std::byte* data, size_t bytes, TensorType type, const Shape& shape) {
  const size_t matrix = MatrixBytes(type, shape);
  ExpertWeights weights;
  weights.num_experts = bytes / (3 * matrix);
  weights.expert_dim = weights.row_stride = shape.dim;
  weights.gate = {type, weights.num_experts * shape.dim, shape.hidden, data};
  weights.up = {type, weights.num_experts * shape.dim, shape.hidden,
                data + weights.num_experts * matrix};
  weights.down = {type, weights.num_experts * shape.hidden, shape.dim,
                  data + 2 * weights.num_experts * matrix};
  return weights;
}

// Median seconds of a pass; the picks go round all experts, so that they are met in memory.
double PassSeconds(const OpContext& context, const ExpertWeights& weights, const Shape& shape,
                   double seconds) {
  LocalExperts experts(context, 0, {weights});
  const std::vector<float> x(shape.hidden, 0.01F), shares(kTopK, 0.125F);
  std::vector<float> y(shape.hidden);
  std::vector<int32_t> ids(kTopK);
  std::vector<double> passes;
  const Clock::time_point start = Clock::now();
  size_t next = 0;
  for (double elapsed = 0; passes.size() < 10 || elapsed < seconds;) {
    for (int32_t& id : ids) id = static_cast<int32_t>(next++ % weights.num_experts);
    const Clock::time_point begin = Clock::now();
    const absl::Status status = experts.Compute({.layer = 0,
                                                 .tokens = 1,
                                                 .hidden_dim = static_cast<int>(shape.hidden),
                                                 .top_k = kTopK,
                                                 .x = x.data(),
                                                 .ids = ids.data(),
                                                 .weights = shares.data()},
                                                y.data());
    if (!status.ok()) return 0;
    passes.push_back(std::chrono::duration<double>(Clock::now() - begin).count());
    elapsed = std::chrono::duration<double>(Clock::now() - start).count();
    if (elapsed > 8 * seconds) break;  // a slow machine: what there is must do
  }
  std::nth_element(passes.begin(), passes.begin() + static_cast<long>(passes.size() / 2),
                   passes.end());
  return passes[passes.size() / 2];
}

}  // namespace

void MeasureExperts(int threads, uint64_t usable_bytes, uint64_t largest_cache_bytes,
                    const CpuKernels& kernels, const MeasureOptions& options, HostFacts* facts) {
  const std::optional<WeightMemory> memory =
      WeightMemory::Make(usable_bytes, largest_cache_bytes, threads, options);
  if (threads < 1 || !memory) return;
  ThreadPool pool(ThreadPoolOptions{.num_threads = threads});
  const OpContext context = {.kernels = &kernels, .pool = &pool};
  const double each = options.seconds_each / 2;
  const double fixed = PassSeconds(
      context, ExpertsIn(memory->data(), memory->bytes(), TensorType::kQ8_0, kTiny), kTiny, each);
  facts->experts_layer_us = fixed * 1e6;
  facts->experts_threads = threads;
  for (WeightRate& rate : facts->weight_rates) {
    const TensorType type = *std::find_if(std::begin(kMeasuredTypes), std::end(kMeasuredTypes),
                                          [&](TensorType t) { return TypeName(t) == rate.type; });
    const ExpertWeights weights = ExpertsIn(memory->data(), memory->bytes(), type, kLarge);
    const size_t picked = kTopK * 3 * MatrixBytes(type, kLarge);
    if (weights.num_experts < 2 * kTopK) continue;  // no room for so wide a type
    const double seconds = PassSeconds(context, weights, kLarge, each) - fixed;
    if (seconds > 0) rate.experts_gb_per_s = static_cast<double>(picked) / seconds / 1e9;
  }
}

}  // namespace packtrain

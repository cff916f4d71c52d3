#include <algorithm>

#include "common/base/status_macros.h"
#include "worker/graph/layers.h"
#include "worker/ops/router.h"
#include "worker/ops/vector_math.h"

namespace packtrain {
namespace {

// Chooses the experts of every row.
ExpertsRequest RouteRows(RunContext* run, int layer, const MoeWeights& weights, const float* x) {
  const MoeConfig& moe = run->config.moe;
  const auto experts = static_cast<size_t>(moe.num_experts);
  const auto top_k = static_cast<size_t>(moe.top_k);
  float* logits = run->router_logits.Get(run->rows() * experts);
  float* picked = run->expert_weights.Get(run->rows() * top_k);
  run->expert_ids.resize(run->rows() * top_k);
  Linear(run->op, weights.router, &run->x, logits);
  run->ForRows(experts * top_k, [&](size_t row, int thread) {
    float* scratch = run->thread_buffers[static_cast<size_t>(thread)].Get(
        experts + static_cast<size_t>(moe.num_groups));
    Route(moe, logits + row * experts,
          weights.router_bias.empty() ? nullptr : weights.router_bias.data(),
          run->expert_ids.data() + row * top_k, picked + row * top_k, scratch);
  });
  return {.layer = layer,
          .tokens = static_cast<int>(run->rows()),
          .hidden_dim = run->config.hidden_dim,
          .top_k = moe.top_k,
          .x = x,
          .ids = run->expert_ids.data(),
          .weights = picked};
}

// y [rows, hidden_dim] := the shared expert, times its gate where it has one.
void RunShared(RunContext* run, const MoeWeights& weights, const float* x, float* y) {
  const auto dim = static_cast<size_t>(run->config.hidden_dim);
  RunFfn(run, weights.shared, &run->x, y);
  if (weights.shared_router.empty()) return;
  run->ForRows(dim, [&](size_t row, int) {
    Scale(y + row * dim, Sigmoid(Dot(weights.shared_router.data(), x + row * dim, dim)), dim);
  });
}

}  // namespace

void RunFfn(RunContext* run, const FfnWeights& weights, Activations* x, float* y) {
  const size_t inner = weights.gate.rows;
  float* gate = run->gate.Get(run->rows() * inner);
  float* up = run->extra.Get(run->rows() * inner);
  LinearMany(run->op, {{weights.gate, gate}, {weights.up, up}}, x);
  run->ForRows(4 * inner, [&](size_t row, int) {
    run->op.vector().swiglu(gate + row * inner, up + row * inner, inner, gate + row * inner);
  });
  run->y.Reset(gate, run->rows(), inner);
  Linear(run->op, weights.down, &run->y, y);
}

absl::Status RunMoe(RunContext* run, int layer, const MoeWeights& weights, const float* x,
                    float* y) {
  const auto dim = static_cast<size_t>(run->config.hidden_dim);
  run->times.Begin(OpKind::kRouter);
  run->x.Reset(x, run->rows(), dim);
  const ExpertsRequest request = RouteRows(run, layer, weights, x);
  const bool local = run->local_experts != nullptr && run->local_experts->Holds(layer);
  if (!local) RETURN_IF_ERROR(run->remote_experts->Post(request));
  const bool has_shared = !weights.shared.gate.empty();
  float* shared = run->shared.Get(run->rows() * dim);
  run->times.Begin(OpKind::kFfn);
  if (has_shared) RunShared(run, weights, x, shared);
  run->times.Begin(OpKind::kExperts);
  RETURN_IF_ERROR(local ? run->local_experts->Compute(request, y) : run->remote_experts->Await(y));
  if (has_shared) {
    run->ForRows(dim, [&](size_t row, int) { Add(y + row * dim, shared + row * dim, dim); });
  }
  return absl::OkStatus();
}

}  // namespace packtrain

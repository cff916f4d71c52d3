#pragma once

// Routed experts on the CPU: used by a stage for its resident layers and by an experts worker for
// everybody's.

#include <vector>

#include "absl/status/statusor.h"
#include "common/tensor/matrix_view.h"
#include "worker/engine/experts.h"
#include "worker/ops/linear.h"

namespace packtrain {

// One layer's routed experts, one behind the other.
struct ExpertWeights {
  MatrixView gate;  // [num_experts * row_stride, hidden_dim]; of the last expert not all rows
  MatrixView up;
  MatrixView down;        // [num_experts * hidden_dim, expert_dim]
  size_t expert_dim = 0;  // rows of gate and up that belong to an expert
  size_t row_stride = 0;  // rows from one expert to the next (gate and up may share a tensor)
  size_t num_experts = 0;
};

class LocalExperts : public ExpertsBackend {
 public:
  // layers[i] serves layer first_layer + i; entries without weights are layers without experts.
  LocalExperts(const OpContext& context, int first_layer, std::vector<ExpertWeights> layers);

  // Each expert that is asked for is read once, however many tokens ask.
  absl::Status Compute(const ExpertsRequest& request, float* y) override;

  bool Holds(int layer) const;

 private:
  // The picks of one expert: [first, last) in order_.
  struct Group {
    int32_t expert = 0;
    int first = 0, last = 0;
  };
  absl::Status Sort(const ExpertsRequest& request, const ExpertWeights& weights);
  void ComputeInner(const ExpertWeights& weights);
  void ComputeDown(const ExpertsRequest& request, const ExpertWeights& weights, float* y);

  OpContext context_;
  int first_layer_;
  std::vector<ExpertWeights> layers_;

  Activations x_, inner_;
  std::vector<Group> groups_;
  std::vector<int> order_;                // picks (token * top_k + rank), grouped by expert
  std::vector<int> rows_;                 // of each place: its token
  std::vector<int> place_;                // pick -> its place in order_, -1: not ours
  std::vector<float> gate_, up_;          // [places, expert_dim]
  std::vector<std::vector<float>> down_;  // per thread [places, rows of a task]
};

}  // namespace packtrain

#pragma once

// The experts seam: (layer, tokens, (expert, weight) pairs) -> one summed row per token. Served by
// the stage's own device, by an experts worker through its shared-memory mailbox, or over gRPC;
// the stage does not know which.

#include <chrono>
#include <cstdint>
#include <span>

#include "absl/status/status.h"

namespace packtrain {

struct ExpertsRequest {
  int layer = 0;
  int tokens = 0;
  int hidden_dim = 0;
  int top_k = 0;
  const float* x = nullptr;        // [tokens, hidden_dim] normed activations, borrowed until Await
  const int32_t* ids = nullptr;    // [tokens, top_k] in rank order; -1: not asked of this owner
  const float* weights = nullptr;  // [tokens, top_k]
};

class ExpertsClient {
 public:
  virtual ~ExpertsClient() = default;
  // The engine says so before each Stage::Run; tells one step's requests from another's.
  virtual void BeginStep(uint64_t step_id) { static_cast<void>(step_id); }
  // Posts the work of one layer; the stage computes the shared expert meanwhile. At most one
  // request is outstanding.
  virtual absl::Status Post(const ExpertsRequest& request) = 0;
  // y [tokens, hidden_dim]: per token the picks' results times their weights, summed in rank order
  // starting from 0. Errors: UNAVAILABLE (the worker is gone), DEADLINE_EXCEEDED.
  virtual absl::Status Await(float* y) = 0;
  // How long Await has waited since BeginStep.
  virtual std::chrono::nanoseconds waited() const { return {}; }
  // Any thread: the outstanding request and all later ones end with UNAVAILABLE.
  virtual void Close() {}
};

// The other side of the seam: computes what clients ask for.
class ExpertsBackend {
 public:
  virtual ~ExpertsBackend() = default;
  // Same meaning as above. INVALID_ARGUMENT for a layer or expert it does not hold.
  virtual absl::Status Compute(const ExpertsRequest& request, float* y) = 0;
};

}  // namespace packtrain

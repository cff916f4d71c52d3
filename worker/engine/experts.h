#pragma once

// The experts seam: (layer, tokens, (expert, weight) pairs) -> one summed row per token. Served by
// the stage's own device, by an experts worker through its shared-memory mailbox, or over gRPC. The
// stage need not know which; one whose device reaches a mailbox by itself uses DeviceMailbox.

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

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

// A mailbox for a device that posts and awaits by itself, in shared memory that it can reach. A
// request is what stands at `call`, `x`, `ids` and `weights` when its word is stored at `request`
// with release for the whole system; its reply is in `y` and `code` once `reply` holds the word,
// read with acquire. A word is Word(layer) + StepBits(step): no other request's equals it. One
// request is outstanding at a time. Lives as long as anybody refers to it, so that a device can let
// go of the memory after the client has gone.
class DeviceMailbox {
 public:
  struct Layout {
    std::byte* memory = nullptr;  // whole pages
    size_t bytes = 0;
    int max_tokens = 0;
    // Offsets.
    size_t request = 0;                         // u64
    size_t call = 0;                            // u32 [3]: layer, tokens, top_k
    size_t reply = 0;                           // u64
    size_t code = 0;                            // u32, 0: y is valid
    size_t closed = 0;                          // u32, not 0: nobody will answer
    size_t x = 0, ids = 0, weights = 0, y = 0;  // dense, as in ExpertsRequest and Await
  };
  virtual ~DeviceMailbox() = default;
  virtual const Layout& layout() const = 0;
  virtual uint64_t Word(int layer) const = 0;
  static uint64_t StepBits(uint64_t step_id) { return (step_id & 0xffffff) << 24; }
  virtual std::chrono::nanoseconds timeout() const = 0;  // from request to reply

  // Around the launches of a step. A device can wake nobody: between the two the server looks for
  // requests again and again.
  virtual void BeginStep() = 0;
  // `waited`: how long the device waited for replies.
  virtual void EndStep(std::chrono::nanoseconds waited) = 0;
  // Sets `closed` if the server is gone. One system call.
  virtual void CheckServer() = 0;
  // Why the request of `layer` failed, of which the device found no reply within the timeout,
  // `closed` set, or a `code`.
  virtual absl::Status TimedOut(int layer) const = 0;
  virtual absl::Status Gone() const = 0;
  virtual absl::Status Refused(uint32_t code) const = 0;
};

// What experts workers read for a step.
struct ExpertsUse {
  uint64_t experts = 0;   // distinct ones of each request
  uint64_t requests = 0;  // layers, where a step is one request to each
};

// Of a request's ids, which come back sorted. O(n log n).
inline uint64_t CountDistinctExperts(std::vector<int32_t>* ids) {
  std::sort(ids->begin(), ids->end());
  const auto end = std::unique(ids->begin(), ids->end());
  return static_cast<uint64_t>(end - std::upper_bound(ids->begin(), end, -1));
}

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
  // The mailbox through which a device may do the same itself for a layer. Null: it may not.
  virtual std::shared_ptr<DeviceMailbox> device_mailbox(int layer) {
    static_cast<void>(layer);
    return nullptr;
  }
  // Since BeginStep: how long a device or Await has waited, and what was read meanwhile.
  virtual std::chrono::nanoseconds waited() const { return {}; }
  virtual ExpertsUse used() const { return {}; }
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

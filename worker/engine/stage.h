#pragma once

// A stage: the layers that one worker carries, loaded and ready to run on one device. The seam
// between the engine (steps, links, sampling) and a device's way of computing. CpuStage lives in
// worker/graph; the CUDA one in libpacktrain_cuda.so.
//
// Not thread-safe: one engine thread calls Run. A step allocates nothing that grows.

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/model/kv_layout.h"
#include "common/model/step.h"
#include "worker/engine/bundle.h"

namespace packtrain {

// What to carry. Layer ranges are half-open.
struct StageSpec {
  int first_layer = 0;
  int last_layer = 0;
  bool embeds = false;    // token ids in (the first stage)
  bool has_head = false;  // logits out (the last stage)
  KvCacheType kv_cache = KvCacheType::kF16;
  int num_pages = 0;  // KV pages, ids 0 .. num_pages - 1
  int num_slots = 0;
  int num_snapshots = 0;  // snapshots of recurrent state
  int max_tokens = 512;   // rows of the largest ubatch
  int streamed_rows = 0;  // as in StreamsExperts
  int threads = 0;        // CPU: 0 = one per hardware thread the process may use
  // MoE layers [first, last) whose routed experts are resident here; others go to `experts`.
  int resident_first = 0;
  int resident_last = 0;
};

// One sequence's rows of a ubatch, resolved by the engine (forwarded tokens filled in).
struct UbatchSequence {
  int32_t slot = 0;
  int32_t start = 0;  // absolute position of the first row
  int32_t rows = 0;
  std::span<const TokenId> tokens;  // [rows]; every stage gets them
  std::span<const int32_t> pages;   // the slot's whole page table, covers start + rows
  bool reset = false;               // recurrent state of the slot := 0 first
  int32_t restore_snapshot = -1;    // or := this snapshot
  int32_t save_snapshot = -1;       // saved here after the last row
  bool logits_last = false;         // the head computes logits of the last row
  // With logits_last: by what the token behind the last row is chosen, and behind how many ids;
  // -1: no log-probabilities, else how many besides the token's.
  const SamplingParams* sampling = nullptr;
  int32_t num_ids = 0;
  int32_t top_logprobs = -1;
  bool logits_all = false;  // of all rows
};

struct Ubatch {
  uint64_t step_id = 0;
  std::span<const PageCopy> page_copies;  // first of all
  std::span<const UbatchSequence> sequences;
  int32_t rows = 0;  // sum over sequences
};

// Bytes by purpose, as the placement bill counts them.
struct StageMemory {
  uint64_t weights = 0, kv = 0, recurrent = 0, buffers = 0;
};

class Stage {
 public:
  virtual ~Stage() = default;

  // Runs the rows through the layers.
  //   in   if !embeds: "hidden" f32 [rows, hidden_dim] and, where the cut needs it, "selection" i32
  //        [rows, top_k] (absolute positions, -1 padded) of the last full indexer layer
  //   out  if !has_head: the same tensors after the last layer; valid until the next Run
  // Errors: INVALID_ARGUMENT on a bundle of another shape; UNAVAILABLE/DEADLINE_EXCEEDED if experts
  // did not answer: the step has failed, the stage stays usable.
  virtual absl::Status Run(const Ubatch& ubatch, const Bundle& in, Bundle* out) = 0;

  // After Run on a stage with the head: f32 [number of logit rows, vocab_size] in the order of the
  // sequences and rows that asked; valid until the next Run.
  virtual std::span<const float> logits() const = 0;

  // After Run on a stage with the head: what the device itself sampled for sequence `index` of the
  // ubatch. Null: the caller samples from logits(), which are empty if nobody needs them.
  virtual const SequenceOutput* sampled(size_t index) const {
    static_cast<void>(index);
    return nullptr;
  }

  // Kernels and copies that the last Run had a GPU do.
  virtual int gpu_operations() const { return 0; }

  virtual StageMemory memory() const = 0;
};

// Bytes loaded so far of the total; called from the loading thread, at most some times a second.
// False: loading is to end with CANCELLED.
using LoadProgress = std::function<bool(uint64_t done, uint64_t total)>;

}  // namespace packtrain

#pragma once

// The scheduler of one deployment: requests become sequences, sequences get slots, slots get steps.
// A state machine without I/O, threads or clock: the owner passes the time in, sends the steps
// that NextStep returns and brings back their results. Not thread-safe; sinks are called from
// within these calls.
//
//   - Waiting requests are admitted in order of arrival; prompts being computed share each chunk
//     evenly; decoding sequences go in as many groups as there are stages (decode_groups.h).
//   - Prefill goes in chunks between the decode steps of the groups, shorter ones while anybody
//     decodes.
//   - A decode step may be sent before the step in front of it was sampled; what overruns the end
//     of a sequence is discarded. A sequence keeps its slot and pages until its last step returned.
//   - Pages are shared by prefix (prefix_cache.h). When they run out, the youngest sequence goes
//     back to waiting and is replayed later from its journal: prefill of what it had.
//   - A failed step voids everything in the stages; every running sequence is replayed once the
//     pipeline is back, and given up if that fails again and again. A token that was reported is
//     part of the journal and never changes.

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "common/model/step.h"
#include "coordinator/scheduler/decode_groups.h"
#include "coordinator/scheduler/page_pool.h"
#include "coordinator/scheduler/pipeline.h"
#include "coordinator/scheduler/prefix_cache.h"
#include "coordinator/scheduler/sequence.h"

namespace packtrain {

struct SchedulerOptions {
  int vocab_size = 0;
  std::function<bool(TokenId)> is_end_of_generation;
};

class Scheduler {
 public:
  explicit Scheduler(SchedulerOptions options);

  // The pipeline is up, for the first time or again after a failed step; its slots, pages and
  // snapshots are empty. REQUIRES: the results of all steps sent before are in.
  void OnPipelineReady(const PipelineLimits& limits, SchedulerTime now);
  // Everything in the stages is lost; OnPipelineReady follows. A failed result says the same.
  void OnPipelineLost(SchedulerTime now);

  // REQUIRES: a pipeline was ready before; `id` is new. What CheckRequest refuses ends at once.
  void Submit(RequestId id, GenerationRequest request, std::shared_ptr<GenerationSink> sink,
              SchedulerTime now);
  void Cancel(RequestId id, SchedulerTime now);
  // Ends every request with `status`.
  void FailAll(const absl::Status& status, SchedulerTime now);

  // The next step to send, if any can be sent now. Call until it returns nothing, after every
  // other call. Ids start at 1.
  std::optional<Step> NextStep(SchedulerTime now);
  // Results of all steps, in order.
  void OnResult(const StepResult& result, SchedulerTime now);

  // What a client can get wrong. Errors: INVALID_ARGUMENT.
  static absl::Status CheckRequest(const GenerationRequest& request, const PipelineLimits& limits);

  const PipelineLimits& limits() const { return limits_; }
  bool pipeline_up() const { return up_; }
  int num_requests() const { return static_cast<int>(by_id_.size()); }  // not finished
  int num_waiting() const { return static_cast<int>(waiting_.size()); }
  int num_running() const;
  int steps_in_flight() const { return static_cast<int>(in_flight_.size()); }
  uint64_t num_finished() const { return num_finished_; }
  bool idle() const { return sequences_.empty() && in_flight_.empty(); }
  uint64_t num_preemptions() const { return num_preemptions_; }
  DeploymentLoad load() const;

  // Recounts pages, slots and snapshots; when idle, none may be in use. Errors: INTERNAL.
  absl::Status CheckIntegrity() const;

 private:
  // One sequence's part of a step in flight.
  struct Part {
    Sequence* sequence = nullptr;
    bool samples = false;
    bool prompt_logprobs = false;
    bool ends_prefill = false;
  };
  struct InFlight {
    uint64_t id = 0;
    int group = -1;  // -1: a chunk of prefill
    std::vector<Part> parts;
    std::vector<int32_t> pages;      // copied from: users until the step returns
    std::vector<int32_t> snapshots;  // pinned until the step returns
  };
  enum class Admission : uint8_t { kAdmitted, kAfterLeader, kNoRoom };

  // Admission.
  void Admit();
  Admission TryAdmit(Sequence* sequence);
  bool LeaderAhead(const Sequence& sequence, int matched) const;
  bool TakePrefix(Sequence* sequence, const PrefixMatch& match);
  void Occupy(Sequence* sequence);

  // Steps.
  std::optional<Step> DecodeStep(int group, SchedulerTime now);
  std::optional<Step> PrefillStep(SchedulerTime now);
  bool AddDecode(Sequence* sequence, Step* step, InFlight* record);
  bool AddChunk(Sequence* sequence, int rows_max, Step* step, InFlight* record);
  StepSequence* Append(Sequence* sequence, int rows, Step* step, InFlight* record);
  void SampleAfter(Sequence* sequence, StepSequence* part, InFlight* record);
  void SaveSnapshot(Sequence* sequence, StepSequence* part, InFlight* record);
  int SnapshotAfter(const Sequence& sequence, int position) const;
  bool GrowPages(Sequence* sequence);
  std::optional<Step> Send(Step step, InFlight record, SchedulerTime now);

  // Ends.
  void TakeOutput(const Part& part, const SequenceOutput* output, SchedulerTime now);
  void TakeToken(Sequence* sequence, const SequenceOutput& output, SchedulerTime now);
  absl::Status CheckOutput(const Part& part, const SequenceOutput* output) const;
  void Finish(Sequence* sequence, FinishReason reason, absl::Status status, SchedulerTime now);
  void Drain(Sequence* sequence);
  void Release(Sequence* sequence);
  void Requeue(Sequence* sequence);
  void CachePages(Sequence* sequence);
  void Lose(absl::Status failure);
  void ReleaseAfterLoss(SchedulerTime now);
  void EmptyPipeline();
  void Erase(Sequence* sequence);

  const SchedulerOptions options_;
  PipelineLimits limits_;
  bool up_ = false;
  absl::Status failure_;    // the last one
  bool may_admit_ = false;  // something changed since admission was last tried
  uint64_t next_arrival_ = 1;
  uint64_t next_step_ = 1;
  uint64_t num_preemptions_ = 0;
  uint64_t num_finished_ = 0;

  std::map<uint64_t, std::unique_ptr<Sequence>> sequences_;  // by arrival; all that exist
  absl::flat_hash_map<RequestId, Sequence*> by_id_;          // those not finished
  std::map<uint64_t, Sequence*> waiting_;                    // by arrival
  std::map<uint64_t, Sequence*> prefilling_;                 // by arrival
  std::vector<Sequence*> slots_;
  int prefill_in_flight_ = 0;
  std::deque<InFlight> in_flight_;
  std::unique_ptr<DecodeGroups> groups_;
  std::unique_ptr<PagePool> pool_;
  std::unique_ptr<PrefixCache> cache_;
};

}  // namespace packtrain

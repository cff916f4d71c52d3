#pragma once

// One request on its way through the scheduler: its journal (what a replay needs), its place in the
// pipeline, and where its results go.

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "coordinator/api/deployment.h"

namespace packtrain {

using SchedulerTime = std::chrono::steady_clock::time_point;

struct Sequence {
  enum class Phase : uint8_t {
    kWaiting,   // has no slot
    kPrefill,   // `ids` up to prefill_target are being computed
    kDecode,    // one token a step
    kDraining,  // gives its slot back when its last step in flight returns
  };

  RequestId id = 0;
  uint64_t arrival = 0;  // lower is older
  std::shared_ptr<GenerationSink> sink;
  bool finished = false;  // OnFinish was called

  // The journal: with these alone the request can be replayed.
  GenerationRequest request;
  std::vector<TokenId> ids;  // the prompt, then what was sampled and reported
  int ids_max = 0;           // where it ends at the latest

  Phase phase = Phase::kWaiting;
  int slot = -1;
  int group = -1;              // of decode
  std::vector<int32_t> pages;  // page table
  int pages_sent = 0;          // entries that the stages know
  int computed = 0;            // positions whose computation was sent
  int prefill_target = 0;   // ids.size() at admission: its last token is the first to sample from
  bool begun = false;       // the stages know the slot's sequence
  int in_flight = 0;        // steps
  int samples_pending = 0;  // sampled tokens not reported yet
  uint64_t last_sample_step = 0;
  int copy_from = -1;         // page to copy with the first step
  int restore_snapshot = -1;  // to load with the first step
  // (position, snapshot): saved by a step, not yet given to the prefix cache.
  std::vector<std::pair<int, int32_t>> snapshots;

  int losses = 0;  // of the pipeline, since the last token

  bool prompt_done = false;
  int cached_tokens = 0;
  std::vector<TokenEvent> prompt_logprobs;

  SchedulerTime submitted_at;
  std::optional<SchedulerTime> first_step_at;
  std::optional<SchedulerTime> first_token_at;
  SchedulerTime last_token_at;

  int prompt_size() const { return static_cast<int>(request.prompt.size()); }
  int num_ids() const { return static_cast<int>(ids.size()); }
  bool active() const { return phase == Phase::kPrefill || phase == Phase::kDecode; }
};

}  // namespace packtrain

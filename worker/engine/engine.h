#pragma once

// Runs the steps of one stage in order: waits for a step's input, runs the stage, passes its output
// on, and on the last stage samples and reports. One engine serves one epoch: when a worker of the
// deployment is replaced, the engine ends and a new one begins with empty slots; the stage with its
// weights stays.
//
// A step that fails (input that does not come, experts that do not answer, a broken link) fails on
// every later stage too, through an error in place of its bundle; its slots stay failed until a
// step begins them anew. Nothing waits longer than the step timeout per event.

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "common/model/step.h"
#include "worker/engine/experts.h"
#include "worker/engine/stage.h"
#include "worker/transport/transport.h"

namespace packtrain {

// Which token follows. Called by the engine thread of the last stage.
struct SamplingFunctions {
  // `logits` [vocab_size] behind `ids`, all ids of the sequence so far. Fills token, logprob and
  // top.
  std::function<SequenceOutput(std::span<const float> logits, const SequenceStart& start,
                               std::span<const TokenId> ids, int top_logprobs)>
      sample;
  // The log-probability of `token` first, then the `top` most likely.
  std::function<std::vector<TokenLogprob>(std::span<const float> logits, TokenId token, int top)>
      score;
};

// The ends that a stage has; absent ones are null. The first stage has no upstream, the last no
// downstream; `tokens_to` and `tokens_from` join last and first unless they are one worker.
struct EngineLinks {
  std::unique_ptr<ReceiveLink> upstream;
  std::unique_ptr<SendLink> downstream;
  std::unique_ptr<SendLink> tokens_to;
  std::unique_ptr<ReceiveLink> tokens_from;
};

struct EngineOptions {
  uint64_t epoch = 0;
  bool first = true;
  bool last = true;
  int num_slots = 0;
  std::chrono::milliseconds step_timeout{60'000};
  size_t direct_from_bytes = 0;  // Bundle::device_from_bytes of what goes downstream
  std::optional<int> turn_cpu;   // as in TurnCpu
};

struct EngineCallbacks {
  // On the last stage for every step, in order; from the engine thread. Those of quick steps come
  // several at a time.
  std::function<void(std::vector<StepResult>)> results;
  // A link broke (`what`: "upstream", ...); all steps that need it will fail. Any thread, may
  // repeat.
  std::function<void(std::string_view what, const absl::Status&)> link_down;
};

class Engine {
 public:
  // `stage` and `experts` (may be null) are borrowed.
  Engine(Stage* stage, ExpertsClient* experts, const EngineOptions& options, EngineLinks links,
         SamplingFunctions sampling, EngineCallbacks callbacks);
  // Ends steps in flight without results; waits for a Stage::Run that is under way.
  ~Engine();
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  // Any thread; never blocks. Slots, pages and snapshots must be in range (common/rpc checks).
  void Submit(std::vector<Step> steps);
  // Steps up to this id that have not begun fail with CANCELLED.
  void Cancel(uint64_t through_step);
  // Waits until no step is in flight. DEADLINE_EXCEEDED.
  absl::Status Drain(std::chrono::steady_clock::time_point deadline);

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace packtrain

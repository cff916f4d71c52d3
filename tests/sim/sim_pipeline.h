#pragma once

// A pipeline of stages on a simulated clock: each stage takes its time for each step, one step at a
// time and in order; a token is forwarded from the last stage to the first. Any moment the workers
// may die: then every step in flight fails, until Restart.

#include <chrono>
#include <deque>
#include <functional>
#include <map>
#include <optional>
#include <vector>

#include "coordinator/scheduler/sequence.h"
#include "tests/sim/fake_stages.h"

namespace packtrain {

using SimDuration = std::chrono::steady_clock::duration;

class SimPipeline {
 public:
  // stage_time(step, stage): how long that stage works on that step.
  using StageTime = std::function<SimDuration(const Step& step, int stage)>;
  SimPipeline(const PipelineLimits& limits, int end_every, StageTime stage_time,
              SimDuration report_time);

  void Submit(Step step, SchedulerTime now);
  // When the next result arrives at the coordinator; nothing: none in flight.
  std::optional<SchedulerTime> NextResultAt() const;
  StepResult TakeResult();
  void Kill(SchedulerTime now);
  void Restart();

  size_t steps_in_flight() const { return results_.size(); }
  const std::string& violation() const { return stages_.violation(); }

 private:
  struct Result {
    SchedulerTime at;
    Step step;
    bool failed = false;
  };
  FakeStages stages_;
  StageTime stage_time_;
  SimDuration report_time_;
  bool dead_ = false;
  std::vector<SchedulerTime> stage_free_at_;
  std::map<uint64_t, SchedulerTime> sampled_at_;  // by step
  std::deque<Result> results_;
};

}  // namespace packtrain

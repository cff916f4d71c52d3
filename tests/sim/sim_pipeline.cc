#include "tests/sim/sim_pipeline.h"

#include <algorithm>
#include <utility>

namespace packtrain {

SimPipeline::SimPipeline(const PipelineLimits& limits, int end_every, StageTime stage_time,
                         SimDuration report_time)
    : stages_(limits, end_every),
      stage_time_(std::move(stage_time)),
      report_time_(report_time),
      stage_free_at_(static_cast<size_t>(limits.num_stages)) {}

void SimPipeline::Submit(Step step, SchedulerTime now) {
  SchedulerTime ready = now;
  for (const StepSequence& part : step.sequences) {
    if (part.tokens.empty()) ready = std::max(ready, sampled_at_[part.token_from_step]);
  }
  for (size_t stage = 0; stage < stage_free_at_.size(); ++stage) {
    ready = std::max(ready, stage_free_at_[stage]) + stage_time_(step, static_cast<int>(stage));
    stage_free_at_[stage] = ready;
  }
  sampled_at_[step.id] = ready;
  if (sampled_at_.size() > 256) sampled_at_.erase(sampled_at_.begin());
  SchedulerTime at = ready + report_time_;
  if (!results_.empty()) at = std::max(at, results_.back().at);
  results_.push_back({dead_ ? now : at, std::move(step), dead_});
}

std::optional<SchedulerTime> SimPipeline::NextResultAt() const {
  if (results_.empty()) return std::nullopt;
  return results_.front().at;
}

StepResult SimPipeline::TakeResult() {
  Result result = std::move(results_.front());
  results_.pop_front();
  if (result.failed) {
    StepResult failed;
    failed.id = result.step.id;
    failed.status = absl::UnavailableError("the worker died");
    return failed;
  }
  return stages_.Execute(result.step);
}

void SimPipeline::Kill(SchedulerTime now) {
  dead_ = true;
  for (Result& result : results_) {
    result.failed = true;
    result.at = now;
  }
}

void SimPipeline::Restart() {
  dead_ = false;
  stages_.Reset();
  std::fill(stage_free_at_.begin(), stage_free_at_.end(), SchedulerTime());
}

}  // namespace packtrain

#include "tests/sim/instant_pipeline.h"

#include <algorithm>
#include <iterator>
#include <utility>

namespace packtrain {

InstantPipeline::InstantPipeline(const PipelineLimits& limits, int end_every)
    : limits_(limits), stages_(limits, end_every), thread_([this] { Loop(); }) {}

InstantPipeline::~InstantPipeline() {
  {
    MutexLock lock(&mutex_);
    stopping_ = true;
    changed_.NotifyOne();
  }
  thread_.join();
}

void InstantPipeline::Submit(std::vector<Step> steps) {
  MutexLock lock(&mutex_);
  std::move(steps.begin(), steps.end(), std::back_inserter(steps_));
  changed_.NotifyOne();
}

void InstantPipeline::SetResultCallback(std::function<void(StepResult)> callback) {
  MutexLock lock(&mutex_);
  callback_ = std::move(callback);
}

void InstantPipeline::Kill() {
  MutexLock lock(&mutex_);
  dead_ = true;
}

void InstantPipeline::Restart() {
  MutexLock lock(&mutex_);
  dead_ = false;
  stages_.Reset();
}

std::string InstantPipeline::violation() {
  MutexLock lock(&mutex_);
  return stages_.violation();
}

void InstantPipeline::Loop() {
  for (;;) {
    std::vector<StepResult> results;
    std::function<void(StepResult)> callback;
    {
      MutexLock lock(&mutex_);
      while (steps_.empty() && !stopping_) changed_.Wait(&mutex_);
      if (stopping_) return;
      for (const Step& step : steps_) {
        if (dead_) {
          results.emplace_back();
          results.back().id = step.id;
          results.back().status = absl::UnavailableError("the worker died");
        } else {
          results.push_back(stages_.Execute(step));
        }
      }
      steps_.clear();
      callback = callback_;
    }
    for (StepResult& result : results) callback(std::move(result));
  }
}

}  // namespace packtrain

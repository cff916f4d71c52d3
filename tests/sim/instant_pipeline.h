#pragma once

// A pipeline whose stages take no time: a thread runs each step through FakeStages and reports it.

#include <functional>
#include <thread>
#include <vector>

#include "common/base/mutex.h"
#include "coordinator/scheduler/pipeline.h"
#include "tests/sim/fake_stages.h"

namespace packtrain {

class InstantPipeline : public Pipeline {
 public:
  explicit InstantPipeline(const PipelineLimits& limits, int end_every = 1 << 30);
  ~InstantPipeline() override;

  PipelineLimits limits() const override { return limits_; }
  void Submit(std::vector<Step> steps) override;
  void SetResultCallback(std::function<void(StepResult)> callback) override;

  // From now on steps fail; Restart makes the stages empty and usable again.
  void Kill();
  void Restart();
  std::string violation();

 private:
  void Loop();

  const PipelineLimits limits_;
  Mutex mutex_;
  CondVar changed_;
  FakeStages stages_ ABSL_GUARDED_BY(mutex_);
  std::vector<Step> steps_ ABSL_GUARDED_BY(mutex_);
  std::function<void(StepResult)> callback_ ABSL_GUARDED_BY(mutex_);
  bool dead_ ABSL_GUARDED_BY(mutex_) = false;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

}  // namespace packtrain

#pragma once

// One deployment at work: a thread that owns the scheduler, sends its steps into the pipeline and
// brings results to the sinks. Whoever starts the workers tells it when the pipeline is there,
// lost, or beyond repair; all of these calls are thread-safe.

#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/statusor.h"
#include "common/base/mutex.h"
#include "coordinator/api/deployment.h"
#include "coordinator/scheduler/pipeline.h"
#include "coordinator/scheduler/scheduler.h"

namespace packtrain {

class DeploymentRunner : public Deployment {
 public:
  struct Options {
    int queue_max = 128;  // requests beyond those in slots
  };
  // `chat_template` may be null.
  DeploymentRunner(DeploymentInfo info, std::unique_ptr<Tokenizer> tokenizer,
                   std::unique_ptr<ChatTemplate> chat_template, Options options);
  // Ends every request with UNAVAILABLE. Results that come later are dropped.
  ~DeploymentRunner() override;

  // The workers have loaded. Takes over the pipeline's result callback; `pipeline` is borrowed
  // until the destructor.
  void Start(Pipeline* pipeline);
  // The slots of all stages are lost; Submit to the pipeline fails until PipelineReady. (A step
  // that fails without this is replayed at once.)
  void PipelineLost(std::string reason);
  // The workers are back and empty; running requests are replayed.
  void PipelineReady();
  // Nothing will come back: every request ends with `status`, and so do new ones.
  void Fail(absl::Status status);
  // What is going on while loading or recovering, one line.
  void SetStateMessage(std::string message);

  const DeploymentInfo& info() const override { return info_; }
  DeploymentState state() const override;
  std::string state_message() const override;
  DeploymentLoad load() const override;
  const Tokenizer& tokenizer() const override { return *tokenizer_; }
  const ChatTemplate* chat_template() const override { return chat_template_.get(); }
  absl::StatusOr<RequestId> Submit(GenerationRequest request,
                                   std::shared_ptr<GenerationSink> sink) override;
  void Cancel(RequestId id) override;
  int RetryAfterSeconds() const override;

 private:
  using Event = std::function<void()>;
  // Shared with the pipeline's callback, which may outlive this object.
  struct Inbox {
    Mutex mutex;
    CondVar changed;
    std::vector<Event> events ABSL_GUARDED_BY(mutex);
    bool closed ABSL_GUARDED_BY(mutex) = false;
    void Post(Event event);
  };
  void Loop();
  void SendSteps();
  void Publish();
  void Record(const StepTimes& times);

  const DeploymentInfo info_;
  const std::unique_ptr<Tokenizer> tokenizer_;
  const std::unique_ptr<ChatTemplate> chat_template_;
  const Options options_;
  const std::shared_ptr<Inbox> inbox_ = std::make_shared<Inbox>();

  // The scheduler's thread only.
  Scheduler scheduler_;
  Pipeline* pipeline_ = nullptr;
  bool available_ = false;  // steps may be sent once the results of lost ones are in
  uint64_t finished_seen_ = 0;
  std::optional<SchedulerTime> last_finish_;

  mutable Mutex mutex_;
  DeploymentState state_ ABSL_GUARDED_BY(mutex_) = DeploymentState::kLoading;
  std::string state_message_ ABSL_GUARDED_BY(mutex_);
  absl::Status failure_ ABSL_GUARDED_BY(mutex_);
  PipelineLimits limits_ ABSL_GUARDED_BY(mutex_);
  DeploymentLoad load_ ABSL_GUARDED_BY(mutex_);
  std::vector<StepTimes> decode_steps_ ABSL_GUARDED_BY(mutex_);  // the last ones, as a ring
  size_t next_decode_step_ ABSL_GUARDED_BY(mutex_) = 0;
  RequestId next_id_ ABSL_GUARDED_BY(mutex_) = 1;
  uint64_t num_submitted_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t num_finished_ ABSL_GUARDED_BY(mutex_) = 0;
  double seconds_per_finish_ ABSL_GUARDED_BY(mutex_) = 1;

  std::thread thread_;  // last: runs Loop over everything above
};

}  // namespace packtrain

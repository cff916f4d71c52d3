#include "coordinator/fleet/fleet_pipeline.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <atomic>
#include <deque>
#include <limits>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/base/mutex.h"
#include "common/base/status_macros.h"
#include "common/rpc/step_codec.h"
#include "coordinator/fleet/fleet.h"
#include "coordinator/fleet/fleet_messages.h"

namespace packtrain {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::chrono::milliseconds kHealthEvery(300);  // with what an answer may take below 2 s
constexpr std::chrono::seconds kDrainTimeout(1);  // a layer's worth of work; the rest is cancelled
constexpr int kReplacementsMax = 5;               // in a row, without a single good step between

// Above every epoch of an earlier coordinator, unlike those of one that started at the same time.
uint64_t FirstEpoch() {
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  return static_cast<uint64_t>(std::chrono::duration_cast<std::chrono::microseconds>(now).count())
         << 10;
}

}  // namespace

class FleetPipeline::Impl {
 public:
  Impl(DeploymentPlan plan, FleetOptions options)
      : plan_(std::move(plan)),
        options_(std::move(options)),
        fleet_(plan_, options_,
               {.message = [this](const FleetWorker& worker,
                                  const v1::WorkerMessage& message) { OnMessage(worker, message); },
                .lost = [this](const absl::Status& status) { Break(status); },
                .keep_waiting = [this] { return !stopping(); }}),
        epoch_(FirstEpoch()) {}

  ~Impl() { Stop(); }

  absl::Status Start() {
    {
      MutexLock lock(&mutex_);
      if (stopping_ || supervisor_.joinable()) {
        return absl::FailedPreconditionError("the deployment was started before");
      }
      supervisor_ = std::thread([this] { Supervise(); });
    }
    MutexLock lock(&mutex_);
    while (state_ == FleetState::kStarting) changed_.Wait(&mutex_);
    return state_ == FleetState::kReady ? absl::OkStatus() : failure_;
  }

  void Stop() {
    {
      MutexLock lock(&mutex_);
      stopping_ = true;
      changed_.NotifyAll();
    }
    if (supervisor_.joinable()) supervisor_.join();
  }

  FleetState state() const {
    MutexLock lock(&mutex_);
    return state_;
  }
  std::string reason() const {
    MutexLock lock(&mutex_);
    return std::string(failure_.message());
  }

  PipelineLimits limits() const {
    PipelineLimits limits;
    limits.num_stages = 0;
    for (const WorkerPlan& w : plan_.workers) limits.num_stages += w.role == WorkerRole::kStage;
    limits.num_slots = plan_.num_slots;
    limits.num_pages = plan_.num_pages;
    limits.num_snapshots = plan_.num_snapshots;
    limits.max_tokens = plan_.max_tokens;
    limits.context_length = plan_.context_length;
    return limits;
  }

  void SetResultCallback(std::function<void(StepResult)> callback) {
    callback_ = std::move(callback);
  }

  void Submit(const std::vector<Step>& steps) {
    // One at a time: all workers must get the steps in the same order.
    MutexLock submit_lock(&submit_mutex_);
    uint64_t epoch = 0;
    {
      MutexLock lock(&mutex_);
      for (const Step& step : steps) pending_.push_back(step.id);
      if (state_ != FleetState::kReady || broken_) {
        changed_.NotifyAll();
        return;  // the supervisor fails them
      }
      epoch = epoch_;
    }
    // Stages cannot be replaced meanwhile: the supervisor takes submit_mutex_ for that.
    for (const v1::CoordinatorMessage& message : StepsMessages(steps, epoch)) {
      for (WorkerConnection* stage : stages_) stage->Send(message);
    }
  }

 private:
  // ---- the supervisor thread ----

  void Supervise() {
    absl::Status status = fleet_.Prepare();
    if (status.ok()) status = fleet_.Start(epoch_);
    if (status.ok()) status = Connect();
    SetState(status.ok() ? FleetState::kReady : FleetState::kFailed, status);
    while (Watch()) {
      if (state() == FleetState::kReady) Recover();
    }
    StopWorkers();
    SetState(FleetState::kStopped, absl::CancelledError("the deployment was stopped"));
    FailPending();
  }

  // Lets steps that are being computed end, then the processes.
  void StopWorkers() {
    std::vector<WorkerConnection*> stages;
    {
      MutexLock submit_lock(&submit_mutex_);
      stages.swap(stages_);
    }
    Drain(stages);
    fleet_.Stop();
  }

  void Drain(const std::vector<WorkerConnection*>& stages) {
    {
      MutexLock lock(&mutex_);
      if (broken_ || pending_.empty()) return;
    }
    v1::CoordinatorMessage cancel, drain;
    cancel.mutable_cancel()->set_through_step(std::numeric_limits<uint64_t>::max());
    drain.mutable_drain();
    for (WorkerConnection* stage : stages) {
      stage->Send(cancel);
      stage->Begin(drain, v1::WorkerMessage::kDrained);
    }
    const Clock::time_point deadline = Clock::now() + kDrainTimeout;
    for (WorkerConnection* stage : stages) {
      const auto left =
          std::chrono::duration_cast<std::chrono::milliseconds>(deadline - Clock::now());
      const absl::Status status =
          stage->Finish(std::max(left, std::chrono::milliseconds(0))).status();
      if (!status.ok()) spdlog::debug("{}: {}", plan_.name, std::string(status.message()));
    }
  }

  bool stopping() const {
    MutexLock lock(&mutex_);
    return stopping_;
  }

  void SetState(FleetState state, const absl::Status& failure) {
    {
      MutexLock lock(&mutex_);
      state_ = state;
      failure_ = failure;
      if (state == FleetState::kReady) broken_ = false;
      changed_.NotifyAll();
    }
    if (options_.state) options_.state(state, std::string(failure.message()));
  }

  // Waits until something is to be done: true for a break, false to stop. Fails steps that were
  // submitted while nothing could take them.
  bool Watch() {
    while (true) {
      {
        MutexLock lock(&mutex_);
        const Clock::time_point until = Clock::now() + kHealthEvery;
        while (!stopping_ && !(broken_ && state_ == FleetState::kReady) &&
               !(state_ != FleetState::kReady && !pending_.empty()) && Clock::now() < until) {
          changed_.WaitUntil(&mutex_, until);
        }
        if (stopping_) return false;
        if (broken_ && state_ == FleetState::kReady) return true;
      }
      if (state() != FleetState::kReady) {
        FailPending();
        continue;
      }
      fleet_.CheckHealth();
    }
  }

  void Recover() {
    absl::Status cause;
    {
      MutexLock lock(&mutex_);
      cause = failure_;
    }
    const std::string details = fleet_.Diagnose(std::string(cause.message()));
    spdlog::warn("{}: {}", plan_.name, details);
    cause = absl::UnavailableError(details);
    SetState(FleetState::kRecovering, cause);
    FailPending();
    for (int attempt = 1; !stopping(); ++attempt) {
      if (++replacements_ > kReplacementsMax) {
        SetState(FleetState::kFailed, absl::UnavailableError(absl::StrFormat(
                                          "%s; gave up after %d replacements without a good step",
                                          std::string(cause.message()), kReplacementsMax)));
        FailPending();
        return;
      }
      const absl::Status status = Replace();
      if (status.ok()) break;
      spdlog::warn("{}: replacing failed: {}", plan_.name, std::string(status.message()));
      cause = status;
      MutexLock lock(&mutex_);
      const Clock::time_point until = Clock::now() + attempt * std::chrono::milliseconds(200);
      while (!stopping_ && Clock::now() < until) changed_.WaitUntil(&mutex_, until);
    }
    if (stopping()) return;
    FailPending();
    if (options_.slots_lost) options_.slots_lost();
    FailPending();
    SetState(FleetState::kReady, absl::OkStatus());
    spdlog::info("{}: serving again", plan_.name);
  }

  // Starts and loads what was lost, and connects all under a new epoch.
  absl::Status Replace() {
    {
      MutexLock submit_lock(&submit_mutex_);
      stages_.clear();
    }
    {
      MutexLock lock(&mutex_);
      ++epoch_;
    }
    RETURN_IF_ERROR(fleet_.Restart(epoch_));
    return Connect();
  }

  absl::Status Connect() {
    ASSIGN_OR_RETURN(std::vector<WorkerConnection*> stages, fleet_.Connect(epoch_));
    MutexLock submit_lock(&submit_mutex_);
    stages_ = std::move(stages);
    return absl::OkStatus();
  }

  // Fails all steps in flight, in order.
  void FailPending() {
    std::deque<uint64_t> failed;
    absl::Status failure;
    {
      MutexLock lock(&mutex_);
      failed.swap(pending_);
      failure = failure_;
    }
    MutexLock callback_lock(&callback_mutex_);
    for (const uint64_t id : failed) {
      StepResult result;
      result.id = id;
      result.status = failure;
      callback_(std::move(result));
    }
  }

  // ---- threads of the connections ----

  void Break(const absl::Status& status) {
    MutexLock lock(&mutex_);
    if (state_ != FleetState::kReady || broken_) return;
    broken_ = true;
    failure_ = status;
    changed_.NotifyAll();
  }

  void OnMessage(const FleetWorker& worker, const v1::WorkerMessage& message) {
    if (message.has_load_progress() && options_.progress) {
      options_.progress(worker.name(), message.load_progress().bytes_done(),
                        message.load_progress().bytes_total());
    } else if (message.has_link_down()) {
      Break(
          absl::UnavailableError(absl::StrCat(worker.name(), ": link '", message.link_down().link(),
                                              "': ", message.link_down().message())));
    } else if (message.has_failed()) {
      Break(Named(worker.name(), absl::UnavailableError(message.failed().message())));
    } else if (message.has_step_results()) {
      const v1::StepResults& results = message.step_results();
      for (const v1::StepResult& result : results.results()) OnResult(results.epoch(), result);
    }
  }

  void OnResult(uint64_t epoch, const v1::StepResult& in) {
    MutexLock callback_lock(&callback_mutex_);
    {
      MutexLock lock(&mutex_);
      if (epoch != epoch_ || broken_ || pending_.empty() || pending_.front() != in.id()) {
        return;  // the supervisor fails, or has failed, that step
      }
      pending_.pop_front();
    }
    StepResult result = DecodeStepResult(in);
    if (result.status.ok()) replacements_ = 0;
    callback_(std::move(result));
  }

  const DeploymentPlan plan_;
  const FleetOptions options_;
  std::function<void(StepResult)> callback_ = [](const StepResult&) {};

  Fleet fleet_;  // the supervisor's own
  std::atomic<int> replacements_{0};

  Mutex submit_mutex_;
  std::vector<WorkerConnection*> stages_ ABSL_GUARDED_BY(submit_mutex_);
  Mutex callback_mutex_;  // results come one at a time, in order
  mutable Mutex mutex_;
  CondVar changed_;
  FleetState state_ ABSL_GUARDED_BY(mutex_) = FleetState::kStarting;
  absl::Status failure_ ABSL_GUARDED_BY(mutex_);
  bool broken_ ABSL_GUARDED_BY(mutex_) = false;  // ready no more, and the supervisor will see to it
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::deque<uint64_t> pending_ ABSL_GUARDED_BY(mutex_);
  uint64_t epoch_;  // written by the supervisor under the mutex
  std::thread supervisor_;
};

FleetPipeline::FleetPipeline(DeploymentPlan plan, FleetOptions options)
    : impl_(std::make_unique<Impl>(std::move(plan), std::move(options))) {}
FleetPipeline::~FleetPipeline() = default;
absl::Status FleetPipeline::Start() { return impl_->Start(); }
void FleetPipeline::Stop() { impl_->Stop(); }
FleetState FleetPipeline::state() const { return impl_->state(); }
std::string FleetPipeline::reason() const { return impl_->reason(); }
PipelineLimits FleetPipeline::limits() const { return impl_->limits(); }
void FleetPipeline::Submit(std::vector<Step> steps) { impl_->Submit(steps); }
void FleetPipeline::SetResultCallback(std::function<void(StepResult)> callback) {
  impl_->SetResultCallback(std::move(callback));
}

}  // namespace packtrain

#include "coordinator/scheduler/deployment_runner.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_format.h"
#include "common/base/check.h"

namespace packtrain {
namespace {

constexpr int kRetryAfterSecondsMax = 60;
constexpr size_t kDecodeStepsKept = 128;

float Median(const std::vector<StepTimes>& steps, float StepTimes::*part) {
  std::vector<float> values;
  for (const StepTimes& step : steps) values.push_back(step.*part);
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

SchedulerTime Now() { return std::chrono::steady_clock::now(); }

}  // namespace

void DeploymentRunner::Inbox::Post(Event event) {
  MutexLock lock(&mutex);
  if (closed) return;
  events.push_back(std::move(event));
  if (events.size() == 1) changed.NotifyOne();
}

DeploymentRunner::DeploymentRunner(DeploymentInfo info, std::unique_ptr<Tokenizer> tokenizer,
                                   std::unique_ptr<ChatTemplate> chat_template, Options options)
    : info_(std::move(info)),
      tokenizer_(std::move(tokenizer)),
      chat_template_(std::move(chat_template)),
      options_(options),
      scheduler_(
          {.vocab_size = tokenizer_->vocab_size(),
           .is_end_of_generation =
               [tokens = tokenizer_.get()](TokenId id) { return tokens->IsEndOfGeneration(id); }}),
      thread_([this] { Loop(); }) {}

DeploymentRunner::~DeploymentRunner() {
  Fail(absl::UnavailableError("the server is shutting down"));
  {
    MutexLock lock(&inbox_->mutex);
    inbox_->closed = true;
    inbox_->changed.NotifyOne();
  }
  thread_.join();
}

void DeploymentRunner::Start(Pipeline* pipeline) {
  pipeline->SetResultCallback([inbox = inbox_, this](StepResult result) {
    // `this` is touched only by events, which end with this object.
    inbox->Post([this, shared = std::make_shared<StepResult>(std::move(result))] {
      scheduler_.OnResult(*shared, Now());
      Record(shared->times);
    });
  });
  inbox_->Post([this, pipeline] {
    pipeline_ = pipeline;
    available_ = true;
  });
}

void DeploymentRunner::PipelineLost(std::string reason) {
  SetStateMessage(std::move(reason));
  inbox_->Post([this] {
    available_ = false;
    scheduler_.OnPipelineLost(Now());
  });
}

void DeploymentRunner::PipelineReady() {
  inbox_->Post([this] { available_ = pipeline_ != nullptr; });
}

void DeploymentRunner::Fail(absl::Status status) {
  {
    MutexLock lock(&mutex_);
    if (state_ == DeploymentState::kFailed) return;
    state_ = DeploymentState::kFailed;
    state_message_ = std::string(status.message());
    failure_ = status;
  }
  inbox_->Post([this, status] { scheduler_.FailAll(status, Now()); });
}

void DeploymentRunner::SetStateMessage(std::string message) {
  MutexLock lock(&mutex_);
  state_message_ = std::move(message);
}

DeploymentState DeploymentRunner::state() const {
  MutexLock lock(&mutex_);
  return state_;
}

std::string DeploymentRunner::state_message() const {
  MutexLock lock(&mutex_);
  return state_message_;
}

DeploymentLoad DeploymentRunner::load() const {
  MutexLock lock(&mutex_);
  DeploymentLoad load = load_;
  if (decode_steps_.empty()) return load;
  load.decode_step = {.interval = Median(decode_steps_, &StepTimes::interval),
                      .experts = Median(decode_steps_, &StepTimes::experts),
                      .compute = Median(decode_steps_, &StepTimes::compute),
                      .control = Median(decode_steps_, &StepTimes::control),
                      .experts_read = Median(decode_steps_, &StepTimes::experts_read),
                      .gpu_operations = Median(decode_steps_, &StepTimes::gpu_operations)};
  return load;
}

void DeploymentRunner::Record(const StepTimes& times) {
  if (times.interval <= 0 || !std::isfinite(times.interval) ||
      !std::isfinite(times.experts + times.compute + times.control + times.experts_read +
                     times.gpu_operations)) {
    return;
  }
  MutexLock lock(&mutex_);
  if (decode_steps_.size() < kDecodeStepsKept) {
    decode_steps_.push_back(times);
  } else {
    decode_steps_[next_decode_step_] = times;
  }
  next_decode_step_ = (next_decode_step_ + 1) % kDecodeStepsKept;
}

absl::StatusOr<RequestId> DeploymentRunner::Submit(GenerationRequest request,
                                                   std::shared_ptr<GenerationSink> sink) {
  MutexLock lock(&mutex_);
  if (state_ == DeploymentState::kFailed) return failure_;
  if (state_ == DeploymentState::kLoading) {
    return absl::UnavailableError(absl::StrFormat("%s is still loading", info_.name));
  }
  if (absl::Status status = Scheduler::CheckRequest(request, limits_); !status.ok()) return status;
  const uint64_t outstanding = num_submitted_ - num_finished_;
  if (outstanding >= static_cast<uint64_t>(limits_.num_slots + options_.queue_max)) {
    return absl::ResourceExhaustedError(absl::StrFormat(
        "the queue of %s is full: %d requests are running or waiting", info_.name, outstanding));
  }
  const RequestId id = next_id_++;
  ++num_submitted_;
  // Posted with the lock held: Fail must not come between the check and the post.
  inbox_->Post(
      [this, id, shared = std::make_shared<GenerationRequest>(std::move(request)),
       sink = std::move(sink)] { scheduler_.Submit(id, std::move(*shared), sink, Now()); });
  return id;
}

void DeploymentRunner::Cancel(RequestId id) {
  inbox_->Post([this, id] { scheduler_.Cancel(id, Now()); });
}

int DeploymentRunner::RetryAfterSeconds() const {
  MutexLock lock(&mutex_);
  return std::clamp(static_cast<int>(std::ceil(seconds_per_finish_)), 1, kRetryAfterSecondsMax);
}

void DeploymentRunner::Loop() {
  std::vector<Event> events;
  for (;;) {
    {
      MutexLock lock(&inbox_->mutex);
      while (inbox_->events.empty() && !inbox_->closed) inbox_->changed.Wait(&inbox_->mutex);
      events.swap(inbox_->events);
      if (events.empty()) return;
    }
    for (const Event& event : events) event();
    events.clear();
    SendSteps();
    Publish();
  }
}

void DeploymentRunner::SendSteps() {
  if (available_ && !scheduler_.pipeline_up() && scheduler_.steps_in_flight() == 0) {
    scheduler_.OnPipelineReady(pipeline_->limits(), Now());
  }
  std::vector<Step> steps;
  while (std::optional<Step> step = scheduler_.NextStep(Now())) steps.push_back(*std::move(step));
  if (!steps.empty()) pipeline_->Submit(std::move(steps));
}

// Makes what other threads ask for agree with the scheduler.
void DeploymentRunner::Publish() {
  MutexLock lock(&mutex_);
  if (state_ != DeploymentState::kFailed) {
    if (scheduler_.pipeline_up()) {
      if (state_ != DeploymentState::kReady) state_message_.clear();
      state_ = DeploymentState::kReady;
      limits_ = scheduler_.limits();
    } else if (state_ == DeploymentState::kReady) {
      state_ = DeploymentState::kRecovering;
    }
  }
  load_ = scheduler_.load();
  num_finished_ = scheduler_.num_finished();
  if (num_finished_ == finished_seen_) return;
  const SchedulerTime now = Now();
  if (last_finish_) {
    const double seconds = std::chrono::duration<double>(now - *last_finish_).count() /
                           static_cast<double>(num_finished_ - finished_seen_);
    seconds_per_finish_ += (seconds - seconds_per_finish_) / 8;
  }
  last_finish_ = now;
  finished_seen_ = num_finished_;
}

}  // namespace packtrain

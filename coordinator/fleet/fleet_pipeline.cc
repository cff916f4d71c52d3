#include "coordinator/fleet/fleet_pipeline.h"

#include <arpa/inet.h>
#include <netdb.h>
#include <spdlog/spdlog.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <deque>
#include <limits>
#include <map>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/base/mutex.h"
#include "common/base/status_macros.h"
#include "common/rpc/channel.h"
#include "common/rpc/step_codec.h"
#include "coordinator/fleet/fleet_messages.h"
#include "coordinator/fleet/fleet_worker.h"
#include "coordinator/fleet/link_choice.h"
#include "coordinator/fleet/socket_folder.h"

namespace packtrain {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::chrono::milliseconds kStartTimeout(20'000);
// Somebody has started it, or has not: no use in waiting. Together with what comes before, 2 s.
constexpr std::chrono::milliseconds kRemoteStartTimeout(1000);
// Opening links waits for the slowest worker, which may have to finish a layer first.
constexpr std::chrono::seconds kConnectTimeout(30);
constexpr std::chrono::milliseconds kLossAfterLink(300);
constexpr std::chrono::milliseconds kHealthEvery(300);
constexpr std::chrono::milliseconds kHealthTimeout(1400);  // both together below 2 s
constexpr std::chrono::seconds kDrainTimeout(1);  // a layer's worth of work; the rest is cancelled
constexpr std::chrono::seconds kShutdownTimeout(2);
constexpr std::chrono::seconds kTerminateTimeout(1);
constexpr int kReplacementsMax = 5;  // in a row, without a single good step between

// Above every epoch of an earlier coordinator, unlike those of one that started at the same time.
uint64_t FirstEpoch() {
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  return static_cast<uint64_t>(std::chrono::duration_cast<std::chrono::microseconds>(now).count())
         << 10;
}

// The address of this host as that one sees it.
absl::StatusOr<std::string> LocalAddressTowards(const std::string& address) {
  const size_t colon = address.rfind(':');
  addrinfo hints{}, *found = nullptr;
  hints.ai_socktype = SOCK_DGRAM;
  hints.ai_family = AF_INET;
  if (colon == std::string::npos ||
      getaddrinfo(address.substr(0, colon).c_str(), address.substr(colon + 1).c_str(), &hints,
                  &found) != 0) {
    return absl::InvalidArgumentError(absl::StrFormat("address '%s' cannot be resolved", address));
  }
  // Connecting a datagram socket sends nothing and picks the route.
  const int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  sockaddr_in local{};
  socklen_t size = sizeof local;
  const bool known = fd >= 0 && connect(fd, found->ai_addr, found->ai_addrlen) == 0 &&
                     getsockname(fd, reinterpret_cast<sockaddr*>(&local), &size) == 0;
  if (fd >= 0) close(fd);
  freeaddrinfo(found);
  char text[INET_ADDRSTRLEN] = {};
  if (!known || inet_ntop(AF_INET, &local.sin_addr, text, sizeof text) == nullptr) {
    return absl::UnavailableError(absl::StrFormat("no route to '%s'", address));
  }
  return std::string(text);
}

}  // namespace

class FleetPipeline::Impl {
 public:
  Impl(DeploymentPlan plan, FleetOptions options)
      : plan_(std::move(plan)), options_(std::move(options)), epoch_(FirstEpoch()) {}

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
    absl::Status status = Prepare();
    if (status.ok()) status = StartAll();
    if (status.ok()) status = ConnectAll();
    SetState(status.ok() ? FleetState::kReady : FleetState::kFailed, status);
    while (Watch()) {
      if (state() == FleetState::kReady) Recover();
    }
    StopWorkers();
    sockets_.reset();
    SetState(FleetState::kStopped, absl::CancelledError("the deployment was stopped"));
    FailPending();
  }

  // Lets steps that are being computed end, then the processes: asked over their streams, asked by
  // a signal, killed.
  void StopWorkers() {
    std::vector<WorkerConnection*> stages;
    {
      MutexLock submit_lock(&submit_mutex_);
      stages.swap(stages_);
    }
    Drain(stages);
    for (auto& worker : workers_) worker->Shutdown();
    if (!WaitEnded(kShutdownTimeout)) {
      for (auto& worker : workers_) worker->Terminate();
      WaitEnded(kTerminateTimeout);
    }
    workers_.clear();
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

  bool WaitEnded(std::chrono::milliseconds timeout) {
    const auto ended = [](const auto& worker) { return worker->ended(); };
    const Clock::time_point deadline = Clock::now() + timeout;
    while (!std::all_of(workers_.begin(), workers_.end(), ended)) {
      if (Clock::now() >= deadline) return false;
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    return true;
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

  absl::Status Prepare() {
    ASSIGN_OR_RETURN(sockets_, SocketFolder::Create("/tmp"));
    std::string data_host;
    for (const WorkerPlan& w : plan_.workers) {
      if (w.address.empty()) continue;
      const absl::Status allowed =
          CheckAddressAllowed(w.address, plan_.tls.given(), plan_.insecure);
      if (!allowed.ok()) return Named(w.name, allowed);
      ASSIGN_OR_RETURN(data_host, LocalAddressTowards(w.address));
    }
    ASSIGN_OR_RETURN(const std::shared_ptr<const Tls> tls, ReadTls(plan_.tls));
    const std::string binary =
        options_.worker_binary.empty() ? SiblingBinary("packtrain-worker") : options_.worker_binary;
    for (const WorkerPlan& w : plan_.workers) {
      workers_.push_back(std::make_unique<FleetWorker>(
          w, FleetWorker::Options{plan_.name, binary, sockets_->path(), data_host, plan_.insecure,
                                  plan_.tls, tls}));
    }
    if (!options_.create_segments) return absl::OkStatus();
    return CreateWorkerSegments(plan_, &workers_);
  }

  static absl::Status Named(const std::string& worker, const absl::Status& status) {
    if (status.ok()) return status;
    return absl::Status(status.code(), absl::StrCat(worker, ": ", std::string(status.message())));
  }

  absl::Status StartWorker(FleetWorker* worker) {
    WorkerConnection::Events events;
    events.message = [this, worker](const v1::WorkerMessage& m) { OnMessage(worker, m); };
    events.lost = [this, worker](const absl::Status& status) {
      worker->lost = true;
      Break(absl::UnavailableError(
          absl::StrCat(worker->name(), ": ", std::string(status.message()))));
    };
    const bool must_be_there = !worker->local() && state() == FleetState::kStarting;
    const absl::Status status = worker->Start(epoch_, std::move(events),
                                              must_be_there ? kRemoteStartTimeout : kStartTimeout,
                                              [this] { return !stopping(); });
    if (status.ok()) return status;
    return absl::UnavailableError(
        absl::StrCat(worker->name(), ": ", worker->Diagnose(std::string(status.message()))));
  }

  // Answers to one request from several workers, in whatever time the slowest takes.
  absl::Status FinishAll(
      const std::vector<FleetWorker*>& workers, std::chrono::milliseconds timeout,
      const std::function<void(FleetWorker*, const v1::WorkerMessage&)>& answer = {}) {
    const Clock::time_point deadline = Clock::now() + timeout;
    absl::Status result;
    for (FleetWorker* w : workers) {
      // In slices, so that Stop ends a long load.
      absl::Status status = absl::DeadlineExceededError("");
      while (absl::IsDeadlineExceeded(status) && Clock::now() < deadline && !stopping()) {
        const auto reply = w->connection()->Finish(std::chrono::milliseconds(100));
        if (reply.ok() && answer) answer(w, *reply);
        status = reply.status();
      }
      if (!status.ok() && w->lost) {
        status = absl::UnavailableError(w->Diagnose(std::string(status.message())));
      }
      if (result.ok()) result = Named(w->name(), status);
    }
    return result;
  }

  absl::Status StartAll() {
    std::vector<FleetWorker*> all;
    // First those that may be missing.
    for (const bool local : {false, true}) {
      for (auto& worker : workers_) {
        if (worker->local() == local) RETURN_IF_ERROR(StartWorker(worker.get()));
      }
    }
    for (auto& worker : workers_) all.push_back(worker.get());
    return Load(all);
  }

  void TellLoaded(const FleetWorker& worker, const v1::Loaded& loaded) {
    options_.loaded(worker.plan(), {.weights = loaded.weight_bytes(),
                                    .kv = loaded.kv_bytes(),
                                    .recurrent = loaded.recurrent_bytes(),
                                    .buffers = loaded.buffer_bytes(),
                                    .process = loaded.process_bytes()});
  }

  // A stage that streams from others' segments comes when they are finished.
  absl::Status Load(const std::vector<FleetWorker*>& workers) {
    for (const bool streams : {false, true}) {
      std::vector<FleetWorker*> now;
      for (FleetWorker* w : workers) {
        if (w->streams_from().empty() == streams) continue;
        w->connection()->Begin(
            LoadMessage(plan_, *w, SpinMicroseconds(workers_, w->peer().host_id())),
            v1::WorkerMessage::kLoaded);
        now.push_back(w);
      }
      RETURN_IF_ERROR(FinishAll(now, options_.load_timeout,
                                [this](FleetWorker* worker, const v1::WorkerMessage& message) {
                                  if (options_.loaded) TellLoaded(*worker, message.loaded());
                                }));
    }
    return absl::OkStatus();
  }

  // Which transport joins two workers; measured once per pair.
  absl::StatusOr<LinkChoice> Choose(FleetWorker* a, FleetWorker* b, LinkUse use) {
    const auto key = std::pair(a->name(), b->name());
    if (const auto it = choices_.find(key); it != choices_.end()) return it->second;
    ASSIGN_OR_RETURN(
        const std::vector<std::string> candidates,
        CandidateTransports(a->peer(), a->name(), b->peer(), b->name(), plan_.links, use));
    LinkChoice chosen{candidates.front()};
    std::string times;
    if (candidates.size() > 1) {
      ASSIGN_OR_RETURN(const v1::HopMeasured measured, Measure(a, b, candidates));
      chosen = FastestTransport(candidates, measured, DecodeBytes(plan_));
      for (const auto& t : measured.times()) {
        absl::StrAppendFormat(&times, ", %s %d bytes %.0f us", t.transport(), t.payload_bytes(),
                              t.one_way_us());
      }
    }
    spdlog::info("{}: link {} - {}: {}{}", plan_.name, a->name(), b->name(), chosen.ToString(),
                 times);
    choices_[key] = chosen;
    return chosen;
  }

  absl::StatusOr<v1::HopMeasured> Measure(FleetWorker* a, FleetWorker* b,
                                          const std::vector<std::string>& candidates) {
    for (FleetWorker* w : {a, b}) {
      w->connection()->Begin(
          MeasureMessage(plan_, w == a ? b->peer() : a->peer(), w == a, candidates),
          v1::WorkerMessage::kHopMeasured);
    }
    auto measured = a->connection()->Finish(kConnectTimeout);
    const auto echoed = b->connection()->Finish(kConnectTimeout);
    RETURN_IF_ERROR(Named(a->name(), measured.status()));
    RETURN_IF_ERROR(Named(b->name(), echoed.status()));
    return measured->hop_measured();
  }

  absl::Status ConnectAll() {
    std::vector<FleetWorker*> all, stages;
    for (auto& worker : workers_) {
      worker->set_epoch(epoch_);
      all.push_back(worker.get());
      if (worker->stage()) stages.push_back(worker.get());
    }
    LinkChoices choices;
    for (size_t i = 0; i < stages.size(); ++i) {
      FleetWorker* next = stages[(i + 1) % stages.size()];
      if (next == stages[i]) continue;
      ASSIGN_OR_RETURN(
          choices[std::pair(stages[i], next)],
          Choose(stages[i], next, next == stages.front() ? LinkUse::kHost : LinkUse::kActivations));
    }
    for (FleetWorker* w : all) {
      if (w->stage()) continue;
      for (FleetWorker* stage : stages) {
        if (!ServesStage(w->plan(), stage->plan())) continue;
        ASSIGN_OR_RETURN(const std::vector<std::string> candidates,
                         CandidateTransports(stage->peer(), stage->name(), w->peer(), w->name(),
                                             plan_.links, LinkUse::kHost));
        const std::string chosen = candidates.front() == "shm" ? "mailbox" : candidates.front();
        spdlog::info("{}: experts {} - {}: {}", plan_.name, stage->name(), w->name(), chosen);
        choices[std::pair(stage, w)] = {chosen};
      }
    }
    for (FleetWorker* w : all) {
      w->connection()->Begin(ConnectMessage(*w, all, choices, epoch_, options_.step_timeout),
                             v1::WorkerMessage::kConnected);
    }
    RETURN_IF_ERROR(FinishAll(all, kConnectTimeout));
    MutexLock submit_lock(&submit_mutex_);
    stages_.clear();
    for (FleetWorker* w : stages) stages_.push_back(w->connection());
    return absl::OkStatus();
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
      for (auto& worker : workers_) {
        const absl::Status health = worker->connection()->CheckHealth(kHealthTimeout);
        if (health.ok() || worker->lost) continue;
        worker->lost = true;
        Break(absl::UnavailableError(
            absl::StrCat(worker->name(), ": does not answer: ", std::string(health.message()))));
      }
    }
  }

  // A link can tell of a worker's death a moment before that worker's own connection does. Taken
  // for alive, it would be waited for until its links cannot be opened.
  void AwaitLoss() {
    const auto lost = [](const std::unique_ptr<FleetWorker>& w) {
      return w->lost || (w->local() && w->ended());
    };
    const Clock::time_point until = Clock::now() + kLossAfterLink;
    while (std::none_of(workers_.begin(), workers_.end(), lost) && Clock::now() < until) {
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    for (auto& worker : workers_) worker->lost = lost(worker);
  }

  void Recover() {
    AwaitLoss();
    absl::Status cause;
    {
      MutexLock lock(&mutex_);
      cause = failure_;
    }
    std::string details = std::string(cause.message());
    for (auto& worker : workers_) {
      if (!worker->lost) continue;
      details = absl::StrCat(worker->name(), ": ", worker->Diagnose(details));
      // Somebody may be writing a step to it.
      if (worker->connection() != nullptr) worker->connection()->Abort();
    }
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
    std::vector<FleetWorker*> lost;
    for (auto& worker : workers_) {
      if (worker->lost || worker->connection() == nullptr) lost.push_back(worker.get());
    }
    for (FleetWorker* w : lost) {
      w->lost = true;  // until it has started, should that fail
      w->Stop();
      RETURN_IF_ERROR(StartWorker(w));
    }
    RETURN_IF_ERROR(Load(lost));
    return ConnectAll();
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

  void OnMessage(FleetWorker* worker, const v1::WorkerMessage& message) {
    if (message.has_load_progress() && options_.progress) {
      options_.progress(worker->name(), message.load_progress().bytes_done(),
                        message.load_progress().bytes_total());
    } else if (message.has_link_down()) {
      Break(absl::UnavailableError(absl::StrCat(worker->name(), ": link '",
                                                message.link_down().link(),
                                                "': ", message.link_down().message())));
    } else if (message.has_failed()) {
      Break(Named(worker->name(), absl::UnavailableError(message.failed().message())));
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

  // The supervisor's own.
  std::unique_ptr<SocketFolder> sockets_;
  std::vector<std::unique_ptr<FleetWorker>> workers_;
  std::map<std::pair<std::string, std::string>, LinkChoice> choices_;
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

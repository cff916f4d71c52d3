#include "coordinator/fleet/fleet.h"

#include <arpa/inet.h>
#include <netdb.h>
#include <spdlog/spdlog.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/base/status_macros.h"
#include "common/rpc/channel.h"
#include "coordinator/fleet/fleet_messages.h"

namespace packtrain {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::chrono::milliseconds kStartTimeout(20'000);
// Somebody has started it, or has not: no use in waiting. Together with what comes before, 2 s.
constexpr std::chrono::milliseconds kRemoteStartTimeout(1000);
// Opening links waits for the slowest worker, which may have to finish a layer first.
constexpr std::chrono::seconds kConnectTimeout(30);
constexpr std::chrono::milliseconds kLossAfterLink(300);
constexpr std::chrono::milliseconds kHealthTimeout(1400);  // with the pipeline's pauses below 2 s
constexpr std::chrono::seconds kShutdownTimeout(2);
constexpr std::chrono::seconds kTerminateTimeout(1);

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

absl::Status Named(const std::string& worker, const absl::Status& status) {
  if (status.ok()) return status;
  return absl::Status(status.code(), absl::StrCat(worker, ": ", std::string(status.message())));
}

absl::Status Fleet::Prepare() {
  ASSIGN_OR_RETURN(sockets_, SocketFolder::Create("/tmp"));
  std::string data_host;
  for (const WorkerPlan& w : plan_.workers) {
    if (w.address.empty()) continue;
    const absl::Status allowed = CheckAddressAllowed(w.address, plan_.tls.given(), plan_.insecure);
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

absl::Status Fleet::StartWorker(uint64_t epoch, FleetWorker* worker,
                                std::chrono::milliseconds timeout) {
  WorkerConnection::Events events;
  events.message = [this, worker](const v1::WorkerMessage& m) { events_.message(*worker, m); };
  events.lost = [this, worker](const absl::Status& status) {
    worker->lost = true;
    events_.lost(
        absl::UnavailableError(absl::StrCat(worker->name(), ": ", std::string(status.message()))));
  };
  const absl::Status status =
      worker->Start(epoch, std::move(events), timeout, events_.keep_waiting);
  if (status.ok()) return status;
  return absl::UnavailableError(
      absl::StrCat(worker->name(), ": ", worker->Diagnose(std::string(status.message()))));
}

absl::Status Fleet::FinishAll(
    const std::vector<FleetWorker*>& workers, std::chrono::milliseconds timeout,
    const std::function<void(FleetWorker*, const v1::WorkerMessage&)>& answer) {
  const Clock::time_point deadline = Clock::now() + timeout;
  absl::Status result;
  for (FleetWorker* w : workers) {
    // In slices, so that Stop ends a long load.
    absl::Status status = absl::DeadlineExceededError("");
    while (absl::IsDeadlineExceeded(status) && Clock::now() < deadline && events_.keep_waiting()) {
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

absl::Status Fleet::Start(uint64_t epoch) {
  std::vector<FleetWorker*> all;
  // First those that may be missing.
  for (const bool local : {false, true}) {
    for (auto& worker : workers_) {
      if (worker->local() != local) continue;
      RETURN_IF_ERROR(
          StartWorker(epoch, worker.get(), local ? kStartTimeout : kRemoteStartTimeout));
    }
  }
  for (auto& worker : workers_) all.push_back(worker.get());
  return Load(all);
}

absl::Status Fleet::Restart(uint64_t epoch) {
  std::vector<FleetWorker*> lost;
  for (auto& worker : workers_) {
    if (worker->lost || worker->connection() == nullptr) lost.push_back(worker.get());
  }
  for (FleetWorker* w : lost) {
    w->lost = true;  // until it has started, should that fail
    w->Stop();
    RETURN_IF_ERROR(StartWorker(epoch, w, kStartTimeout));
  }
  return Load(lost);
}

void Fleet::TellLoaded(const FleetWorker& worker, const v1::Loaded& loaded) {
  options_.loaded(worker.plan(), {.weights = loaded.weight_bytes(),
                                  .kv = loaded.kv_bytes(),
                                  .recurrent = loaded.recurrent_bytes(),
                                  .buffers = loaded.buffer_bytes(),
                                  .process = loaded.process_bytes()});
}

// A stage that streams from others' segments comes when they are finished.
absl::Status Fleet::Load(const std::vector<FleetWorker*>& workers) {
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

absl::StatusOr<LinkChoice> Fleet::Choose(FleetWorker* a, FleetWorker* b, LinkUse use) {
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

absl::StatusOr<v1::HopMeasured> Fleet::Measure(FleetWorker* a, FleetWorker* b,
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

absl::StatusOr<std::vector<WorkerConnection*>> Fleet::Connect(uint64_t epoch) {
  std::vector<FleetWorker*> all, stages;
  for (auto& worker : workers_) {
    worker->set_epoch(epoch);
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
    w->connection()->Begin(ConnectMessage(*w, all, choices, epoch, options_.step_timeout),
                           v1::WorkerMessage::kConnected);
  }
  RETURN_IF_ERROR(FinishAll(all, kConnectTimeout));
  std::vector<WorkerConnection*> connections;
  for (FleetWorker* w : stages) connections.push_back(w->connection());
  return connections;
}

void Fleet::CheckHealth() {
  for (auto& worker : workers_) {
    const absl::Status health = worker->connection()->CheckHealth(kHealthTimeout);
    if (health.ok() || worker->lost) continue;
    worker->lost = true;
    events_.lost(absl::UnavailableError(
        absl::StrCat(worker->name(), ": does not answer: ", std::string(health.message()))));
  }
}

// A link can tell of a worker's death a moment before that worker's own connection does. Taken
// for alive, it would be waited for until its links cannot be opened.
void Fleet::AwaitLoss() {
  const auto lost = [](const std::unique_ptr<FleetWorker>& w) {
    return w->lost || (w->local() && w->ended());
  };
  const Clock::time_point until = Clock::now() + kLossAfterLink;
  while (std::none_of(workers_.begin(), workers_.end(), lost) && Clock::now() < until) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  for (auto& worker : workers_) worker->lost = lost(worker);
}

std::string Fleet::Diagnose(const std::string& why) {
  AwaitLoss();
  std::string details = why;
  for (auto& worker : workers_) {
    if (!worker->lost) continue;
    details = absl::StrCat(worker->name(), ": ", worker->Diagnose(details));
    // Somebody may be writing a step to it.
    if (worker->connection() != nullptr) worker->connection()->Abort();
  }
  return details;
}

void Fleet::Stop() {
  for (auto& worker : workers_) worker->Shutdown();
  if (!WaitEnded(kShutdownTimeout)) {
    for (auto& worker : workers_) worker->Terminate();
    WaitEnded(kTerminateTimeout);
  }
  workers_.clear();
  sockets_.reset();
}

bool Fleet::WaitEnded(std::chrono::milliseconds timeout) {
  const auto ended = [](const auto& worker) { return worker->ended(); };
  const Clock::time_point deadline = Clock::now() + timeout;
  while (!std::all_of(workers_.begin(), workers_.end(), ended)) {
    if (Clock::now() >= deadline) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  return true;
}

}  // namespace packtrain

#include "coordinator/cli/serve_command.h"

#include <prometheus/gauge.h>
#include <prometheus/registry.h>
#include <signal.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cstdio>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/base/mutex.h"
#include "common/base/status_macros.h"
#include "coordinator/api/api_server.h"
#include "coordinator/cli/host_probe.h"
#include "coordinator/cli/load_display.h"
#include "coordinator/cli/log_to_display.h"
#include "coordinator/cli/service.h"
#include "coordinator/placement/report.h"

namespace packtrain {
namespace {

constexpr long kPollNanoseconds = 50'000'000;

// SIGINT and SIGTERM are taken by RunServe alone: blocked before any thread exists, in all of them.
class EndSignals {
 public:
  EndSignals() {
    sigemptyset(&set_);
    sigaddset(&set_, SIGINT);
    sigaddset(&set_, SIGTERM);
    pthread_sigmask(SIG_BLOCK, &set_, nullptr);
  }
  // Waits a moment; whether one of them came.
  bool Poll() const {
    const timespec moment = {.tv_sec = 0, .tv_nsec = kPollNanoseconds};
    return sigtimedwait(&set_, nullptr, &moment) > 0;
  }

 private:
  sigset_t set_;
};

// Idle connections count in thousands; the usual soft limit is 1024 descriptors.
void RaiseDescriptorLimit() {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  limit.rlim_cur = limit.rlim_max;
  setrlimit(RLIMIT_NOFILE, &limit);
}

class Serving {
 public:
  Serving()
      : display_(stderr, isatty(STDERR_FILENO) == 1),
        registry_(std::make_shared<prometheus::Registry>()),
        memory_(prometheus::BuildGauge()
                    .Name("packtrain_worker_memory_bytes")
                    .Help("What a worker holds (actual), and what it was planned to (predicted)")
                    .Register(*registry_)) {}

  absl::Status Start(const Topology& topology) {
    ASSIGN_OR_RETURN(HostFacts facts, FactsForPlanning(Unmeasured::kLeave));
    Placement placement;
    ASSIGN_OR_RETURN(services_,
                     OpenServices(
                         topology, std::move(facts), {}, &display_,
                         [this](const std::string& model, const WorkerPlan& worker,
                                const WorkerMemory& memory) { SetMemory(model, worker, memory); },
                         &placement));
    {
      MutexLock lock(&plan_mutex_);
      placement_ = placement;  // before anyone can ask for it
    }
    RETURN_IF_ERROR(Listen(topology));  // an address that cannot be had is told without the plan
    ShowPlacement(placement, &display_);
    for (const auto& service : services_) service->Start();
    return absl::OkStatus();
  }

  // Reports what has become ready. An error: no model can be served any more.
  absl::Status Poll() {
    size_t ready = 0, failed = 0;
    for (const auto& service : services_) {
      const DeploymentState state = service->deployment()->state();
      ready += state == DeploymentState::kReady ? 1 : 0;
      failed += state == DeploymentState::kFailed ? 1 : 0;
    }
    if (failed > failed_shown_) ShowFailures();
    failed_shown_ = failed;
    if (failed == services_.size()) return absl::UnavailableError("no model can be served");
    if (!ready_shown_ && ready > 0 && ready + failed == services_.size()) {
      ready_shown_ = true;
      display_.Print(absl::StrCat("ready: ", endpoint_, "/v1"));
    }
    return absl::OkStatus();
  }

 private:
  absl::Status Listen(const Topology& topology) {
    ApiServerOptions options;
    options.http.address =
        topology.listen_address == "localhost" ? "127.0.0.1" : topology.listen_address;
    options.http.port = static_cast<uint16_t>(topology.listen_port);
    options.api_keys = topology.api_keys;
    options.plan = [this] { return PlanJson(); };
    std::vector<Deployment*> deployments;
    for (const auto& service : services_) deployments.push_back(service->deployment());
    ASSIGN_OR_RETURN(server_,
                     ApiServer::Start(std::move(options), std::move(deployments), registry_));
    const bool v6 = topology.listen_address.find(':') != std::string::npos;
    endpoint_ = absl::StrCat("http://", v6 ? "[" : "", topology.listen_address, v6 ? "]" : "", ":",
                             server_->port());
    return absl::OkStatus();
  }

  void SetMemory(const std::string& model, const WorkerPlan& worker, const WorkerMemory& memory) {
    for (const MemoryItem& item :
         CompareMemory({.host = "", .device = worker.device}, worker.bill, memory)) {
      for (const auto& [kind, bytes] :
           {std::pair("actual", item.actual), std::pair("predicted", item.predicted)}) {
        memory_
            .Add({{"model", model}, {"worker", worker.name}, {"item", item.name}, {"kind", kind}})
            .Set(static_cast<double>(bytes));
      }
    }
    MutexLock lock(&plan_mutex_);
    SetActual(model, worker, memory, &placement_);
  }

  std::string PlanJson() {
    MutexLock lock(&plan_mutex_);
    return PlacementJson(placement_);
  }

  void ShowFailures() {
    for (const auto& service : services_) {
      const DeploymentRunner& deployment = *service->deployment();
      if (deployment.state() != DeploymentState::kFailed) continue;
      display_.Print(
          absl::StrCat("failed: ", deployment.info().name, ": ", deployment.state_message()));
    }
  }

  LoadDisplay display_;
  LogToDisplay log_{&display_};
  const std::shared_ptr<prometheus::Registry> registry_;
  prometheus::Family<prometheus::Gauge>& memory_;
  Mutex plan_mutex_;
  Placement placement_ ABSL_GUARDED_BY(plan_mutex_);
  std::vector<std::unique_ptr<Service>> services_;
  std::unique_ptr<ApiServer> server_;  // goes before what it serves
  std::string endpoint_;
  size_t failed_shown_ = 0;
  bool ready_shown_ = false;
};

}  // namespace

absl::Status RunServe(const ServeOptions& options) {
  const EndSignals signals;
  RaiseDescriptorLimit();
  ASSIGN_OR_RETURN(const Topology topology, MakeTopology(options));
  Serving serving;
  RETURN_IF_ERROR(serving.Start(topology));
  while (!signals.Poll()) RETURN_IF_ERROR(serving.Poll());
  return absl::OkStatus();
}

}  // namespace packtrain

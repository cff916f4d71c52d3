#include "coordinator/cli/serve_command.h"

#include <prometheus/registry.h>
#include <signal.h>
#include <spdlog/sinks/base_sink.h>
#include <spdlog/spdlog.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/base/status_macros.h"
#include "common/rpc/channel.h"
#include "coordinator/api/api_server.h"
#include "coordinator/cli/load_display.h"
#include "coordinator/cli/served_model.h"
#include "coordinator/fleet/fleet_pipeline.h"
#include "coordinator/placement/even_plan.h"
#include "coordinator/tokenizer/chat_template_host.h"

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

// What processes may still allocate on this host, as the kernel estimates it.
uint64_t AvailableMemory() {
  std::ifstream file("/proc/meminfo");
  for (std::string key; file >> key;) {
    uint64_t kib = 0;
    if (key == "MemAvailable:" && file >> kib) return kib << 10;
  }
  return static_cast<uint64_t>(sysconf(_SC_AVPHYS_PAGES)) *
         static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
}

// Idle connections count in thousands; the usual soft limit is 1024 descriptors.
void RaiseDescriptorLimit() {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  limit.rlim_cur = limit.rlim_max;
  setrlimit(RLIMIT_NOFILE, &limit);
}

// Log lines go above the progress bars, not into them.
class DisplaySink : public spdlog::sinks::base_sink<std::mutex> {
 public:
  explicit DisplaySink(LoadDisplay* display) : display_(display) {}

 private:
  void sink_it_(const spdlog::details::log_msg& message) override {
    spdlog::memory_buf_t line;
    formatter_->format(message, line);
    display_->Print(std::string(line.data(), line.size() - 1));  // without its newline
  }
  void flush_() override {}

  LoadDisplay* const display_;
};

// One model with its workers.
class Service {
 public:
  Service(ServedModel model, DeploymentPlan plan, LoadDisplay* display)
      : model_(std::move(model)),
        fleet_(std::make_unique<FleetPipeline>(std::move(plan), Options(display))) {}
  ~Service() {
    // The fleet reports to the deployment, whose thread sends steps to the fleet: first the one
    // goes quiet, then the other goes away.
    fleet_->Stop();
    if (starter_.joinable()) starter_.join();
    model_.deployment.reset();
  }

  // Returns at once; loading goes on in a thread.
  void Start() {
    starter_ = std::thread([this] {
      const absl::Status status = fleet_->Start();
      if (status.ok()) {
        model_.deployment->Start(fleet_.get());
      } else {
        model_.deployment->Fail(status);
      }
    });
  }
  DeploymentRunner* deployment() const { return model_.deployment.get(); }

 private:
  FleetOptions Options(LoadDisplay* display) {
    FleetOptions options;
    DeploymentRunner* deployment = model_.deployment.get();
    options.progress = [display, name = model_.entry.name](const std::string& worker, uint64_t done,
                                                           uint64_t total) {
      display->Update(absl::StrCat(name, "/", worker), done, total,
                      std::chrono::steady_clock::now());
    };
    options.state = [deployment](FleetState state, const std::string& reason) {
      if (state == FleetState::kRecovering) deployment->PipelineLost(reason);
      if (state == FleetState::kReady) deployment->PipelineReady();
      if (state == FleetState::kFailed) deployment->Fail(absl::UnavailableError(reason));
    };
    return options;
  }

  ServedModel model_;
  std::unique_ptr<FleetPipeline> fleet_;
  std::thread starter_;
};

class Serving {
 public:
  Serving() : display_(stderr, isatty(STDERR_FILENO) == 1) {
    spdlog::set_default_logger(
        std::make_shared<spdlog::logger>("", std::make_shared<DisplaySink>(&display_)));
  }
  ~Serving() {
    server_.reset();
    services_.clear();
    spdlog::set_default_logger(std::make_shared<spdlog::logger>(""));
  }

  absl::Status Start(const Topology& topology) {
    RETURN_IF_ERROR(OpenModels(topology));
    RETURN_IF_ERROR(Listen(topology));
    for (const std::string& line : plan_lines_) display_.Print(line);
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
  static absl::Status CheckAddresses(const Topology& topology, const ModelEntry& entry) {
    for (const WorkerEntry& worker : entry.workers) {
      if (worker.address.empty()) continue;
      const absl::Status allowed = CheckAddressAllowed(worker.address, topology.insecure);
      if (!allowed.ok()) {
        return absl::InvalidArgumentError(
            absl::StrCat(topology.source, ":", worker.line, ": ", allowed.message()));
      }
    }
    return absl::OkStatus();
  }

  absl::Status OpenModels(const Topology& topology) {
    uint64_t memory = AvailableMemory();
    for (const ModelEntry& entry : topology.models) {
      RETURN_IF_ERROR(CheckAddresses(topology, entry));
      std::vector<std::string> warnings;
      ASSIGN_OR_RETURN(ServedModel model,
                       OpenModel(topology, entry, template_host_.get(), &warnings));
      for (const std::string& warning : warnings) plan_lines_.push_back("warning: " + warning);
      ASSIGN_OR_RETURN(EvenPlan even,
                       PlanEvenly({.topology = &topology,
                                   .model = &model.entry,
                                   .config = &model.config,
                                   .weight_bytes = model.deployment->info().file_bytes,
                                   .memory_bytes = memory}));
      memory -= std::min(memory, even.memory_bytes);
      DescribePlan(even.plan);
      services_.push_back(
          std::make_unique<Service>(std::move(model), std::move(even.plan), &display_));
    }
    return absl::OkStatus();
  }

  void DescribePlan(const DeploymentPlan& plan) {
    for (const WorkerPlan& worker : plan.workers) {
      std::string carries;
      if (worker.role == WorkerRole::kStage) {
        carries = absl::StrCat("layers ", FormatLayers(worker.layers));
      }
      for (LayerRange range : worker.expert_layers) {
        absl::StrAppend(&carries, carries.empty() ? "experts of layers " : ", ",
                        FormatLayers(range));
      }
      const std::string& place = worker.address.empty() ? worker.device : worker.address;
      plan_lines_.push_back(
          absl::StrFormat("%s/%s on %s: %s", plan.name, worker.name, place, carries));
    }
  }

  absl::Status Listen(const Topology& topology) {
    ApiServerOptions options;
    options.http.address =
        topology.listen_address == "localhost" ? "127.0.0.1" : topology.listen_address;
    options.http.port = static_cast<uint16_t>(topology.listen_port);
    options.api_keys = topology.api_keys;
    std::vector<Deployment*> deployments;
    for (const auto& service : services_) deployments.push_back(service->deployment());
    ASSIGN_OR_RETURN(server_, ApiServer::Start(std::move(options), std::move(deployments),
                                               std::make_shared<prometheus::Registry>()));
    const bool v6 = topology.listen_address.find(':') != std::string::npos;
    endpoint_ = absl::StrFormat(v6 ? "http://[%s]:%d" : "http://%s:%d", topology.listen_address,
                                server_->port());
    return absl::OkStatus();
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
  std::unique_ptr<ChatTemplateHost> template_host_ = ChatTemplateHost::Create();
  std::vector<std::unique_ptr<Service>> services_;
  std::unique_ptr<ApiServer> server_;  // goes before what it serves
  std::string endpoint_;
  std::vector<std::string> plan_lines_;  // printed once nothing can be refused any more
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

#include "coordinator/cli/service.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <fstream>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/base/status_macros.h"
#include "common/rpc/channel.h"
#include "coordinator/placement/even_plan.h"

namespace packtrain {
namespace {

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

void PrintPlan(const DeploymentPlan& plan, LoadDisplay* display) {
  for (const WorkerPlan& worker : plan.workers) {
    std::string carries;
    if (worker.role == WorkerRole::kStage) {
      carries = absl::StrCat("layers ", FormatLayers(worker.layers));
    }
    for (LayerRange range : worker.expert_layers) {
      absl::StrAppend(&carries, carries.empty() ? "experts of layers " : ", ", FormatLayers(range));
    }
    const std::string& place = worker.address.empty() ? worker.device : worker.address;
    display->Print(absl::StrFormat("%s/%s on %s: %s", plan.name, worker.name, place, carries));
  }
}

absl::Status CheckAddresses(const Topology& topology, const ModelEntry& entry) {
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

}  // namespace

Service::Service(ServedModel model, DeploymentPlan plan, LoadDisplay* display)
    : display_(display),
      model_(std::move(model)),
      plan_(std::move(plan)),
      fleet_(std::make_unique<FleetPipeline>(plan_, Options())) {}

Service::~Service() {
  // The fleet reports to the deployment, whose thread sends steps to the fleet: first the one
  // goes quiet, then the other goes away.
  fleet_->Stop();
  if (starter_.joinable()) starter_.join();
  model_.deployment.reset();
}

void Service::Start() {
  for (const std::string& warning : model_.warnings) display_->Print("warning: " + warning);
  PrintPlan(plan_, display_);
  starter_ = std::thread([this] {
    const absl::Status status = fleet_->Start();
    if (status.ok()) {
      model_.deployment->Start(fleet_.get());
    } else {
      model_.deployment->Fail(status);
    }
  });
}

FleetOptions Service::Options() {
  FleetOptions options;
  DeploymentRunner* deployment = model_.deployment.get();
  options.progress = [display = display_, name = model_.entry.name](const std::string& worker,
                                                                    uint64_t done, uint64_t total) {
    display->Update(absl::StrCat(name, "/", worker), done, total, std::chrono::steady_clock::now());
  };
  options.state = [deployment](FleetState state, const std::string& reason) {
    if (state == FleetState::kRecovering) deployment->PipelineLost(reason);
    if (state == FleetState::kReady) deployment->PipelineReady();
    if (state == FleetState::kFailed) deployment->Fail(absl::UnavailableError(reason));
  };
  return options;
}

absl::StatusOr<std::vector<std::unique_ptr<Service>>> OpenServices(const Topology& topology,
                                                                   ChatTemplateHost* template_host,
                                                                   LoadDisplay* display) {
  std::vector<std::unique_ptr<Service>> services;
  uint64_t memory = AvailableMemory();
  for (const ModelEntry& entry : topology.models) {
    RETURN_IF_ERROR(CheckAddresses(topology, entry));
    ASSIGN_OR_RETURN(ServedModel model, OpenModel(topology, entry, template_host));
    ASSIGN_OR_RETURN(EvenPlan even, PlanEvenly({.topology = &topology,
                                                .model = &model.entry,
                                                .config = &model.config,
                                                .weight_bytes = model.deployment->info().file_bytes,
                                                .memory_bytes = memory}));
    memory -= std::min(memory, even.memory_bytes);
    services.push_back(std::make_unique<Service>(std::move(model), std::move(even.plan), display));
  }
  return services;
}

}  // namespace packtrain

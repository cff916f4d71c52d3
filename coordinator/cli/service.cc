#include "coordinator/cli/service.h"

#include <chrono>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "common/base/status_macros.h"
#include "common/rpc/channel.h"
#include "coordinator/placement/deployment_plan.h"
#include "coordinator/placement/planner.h"
#include "coordinator/placement/report.h"
#include "coordinator/placement/topology_request.h"

namespace packtrain {
namespace {

// "glm-5.2/stage0 holds weights 10.1 GiB (predicted 10.1 GiB), ...".
std::string MemoryLine(const std::string& model, const WorkerPlan& worker,
                       const WorkerMemory& memory) {
  const auto items = CompareMemory({.host = "", .device = worker.device}, worker.bill, memory);
  return absl::StrCat(model, "/", worker.name, " holds ",
                      absl::StrJoin(items, ", ", [](std::string* out, const MemoryItem& item) {
                        absl::StrAppend(out, item.name, " ", FormatBytes(item.actual),
                                        " (predicted ", FormatBytes(item.predicted), ")");
                      }));
}

absl::Status CheckAddresses(const Topology& topology, const ModelEntry& entry) {
  for (const WorkerEntry& worker : entry.workers) {
    if (worker.address.empty()) continue;
    const absl::Status allowed =
        CheckAddressAllowed(worker.address, topology.tls.given(), topology.insecure);
    if (!allowed.ok()) {
      return absl::InvalidArgumentError(
          absl::StrCat(topology.source, ":", worker.line, ": ", allowed.message()));
    }
  }
  return absl::OkStatus();
}

}  // namespace

Service::Service(ServedModel model, DeploymentPlan plan, ModelFacts facts, SpeedPrediction speed,
                 LoadDisplay* display, WorkerLoaded loaded)
    : display_(display),
      model_(std::move(model)),
      plan_(std::move(plan)),
      facts_(std::move(facts)),
      speed_(std::move(speed)),
      fleet_(std::make_unique<FleetPipeline>(plan_, Options(std::move(loaded)))) {}

Service::~Service() {
  // The fleet reports to the deployment, whose thread sends steps to the fleet: first the one
  // goes quiet, then the other goes away.
  fleet_->Stop();
  if (starter_.joinable()) starter_.join();
  model_.deployment.reset();
}

void Service::Start() {
  for (const std::string& warning : model_.warnings) display_->Print("warning: " + warning);
  starter_ = std::thread([this] {
    const absl::Status status = fleet_->Start();
    if (status.ok()) {
      model_.deployment->Start(fleet_.get());
    } else {
      model_.deployment->Fail(status);
    }
  });
}

FleetOptions Service::Options(WorkerLoaded loaded) {
  FleetOptions options;
  DeploymentRunner* deployment = model_.deployment.get();
  options.progress = [display = display_, name = model_.entry.name](const std::string& worker,
                                                                    uint64_t done, uint64_t total) {
    display->Update(absl::StrCat(name, "/", worker), done, total, std::chrono::steady_clock::now());
  };
  options.loaded = [display = display_, name = model_.entry.name, loaded = std::move(loaded)](
                       const WorkerPlan& worker, const WorkerMemory& memory) {
    display->Print(MemoryLine(name, worker, memory));
    if (loaded) loaded(name, worker, memory);
  };
  options.state = [deployment](FleetState state, const std::string& reason) {
    if (state == FleetState::kRecovering) deployment->PipelineLost(reason);
    if (state == FleetState::kReady) deployment->PipelineReady();
    if (state == FleetState::kFailed) deployment->Fail(absl::UnavailableError(reason));
  };
  return options;
}

absl::StatusOr<std::vector<std::unique_ptr<Service>>> OpenServices(
    const Topology& topology, HostFacts this_host, const SpeedQuestions& questions,
    LoadDisplay* display, WorkerLoaded loaded, Placement* placement) {
  if (const absl::Status status = ReadTls(topology.tls).status(); !status.ok()) {
    return absl::InvalidArgumentError(
        absl::StrCat(topology.source, ":", topology.tls_line, ": tls: ", status.message()));
  }
  ASSIGN_OR_RETURN(TopologyRequest request,
                   RequestFor(topology, RigAround(topology, std::move(this_host))));
  for (DeploymentWish& wish : request.request.deployments) {
    if (!questions.depths.empty()) wish.depths = questions.depths;
    if (!questions.prompts.empty()) wish.prompts = questions.prompts;
  }
  ASSIGN_OR_RETURN(*placement, PlanPlacement(request.request));
  std::vector<std::unique_ptr<Service>> services;
  for (size_t i = 0; i < topology.models.size(); ++i) {
    const ModelEntry& entry = topology.models[i];
    const DeploymentPlacement& placed = placement->deployments[i];
    RETURN_IF_ERROR(CheckAddresses(topology, entry));
    ASSIGN_OR_RETURN(DeploymentPlan plan, DeploymentPlanOf(topology, entry, placed,
                                                           request.models[i]->config.hidden_dim));
    plan.ordinal = static_cast<int>(i);
    ASSIGN_OR_RETURN(ServedModel model, OpenModel(entry, placed.context));
    services.push_back(std::make_unique<Service>(
        std::move(model), std::move(plan), *request.models[i], placed.speed, display, loaded));
  }
  return services;
}

void ShowPlacement(const Placement& placement, LoadDisplay* display) {
  const std::string table = PlacementTable(placement);
  for (const absl::string_view line : absl::StrSplit(absl::StripSuffix(table, "\n"), '\n')) {
    display->Print(std::string(line));
  }
}

}  // namespace packtrain

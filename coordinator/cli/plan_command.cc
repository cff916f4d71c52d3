#include "coordinator/cli/plan_command.h"

#include <CLI/CLI.hpp>
#include <cstdio>
#include <filesystem>
#include <utility>

#include "common/base/status_macros.h"
#include "common/config/topology.h"
#include "coordinator/cli/host_probe.h"
#include "coordinator/placement/planner.h"
#include "coordinator/placement/report.h"
#include "coordinator/placement/topology_request.h"

namespace packtrain {
namespace {

absl::StatusOr<ModelEntry> Entry(const PlanOptions& options, const std::string& path) {
  ModelEntry model;
  model.path = path;
  model.name = std::filesystem::path(path).stem().string();
  model.context = options.context;
  model.slots = options.slots;
  ASSIGN_OR_RETURN(model.kv_cache, ParseKvCacheType(options.kv_cache));
  return model;
}

absl::StatusOr<Topology> TopologyOf(const PlanOptions& options) {
  if (!options.topology_path.empty()) return LoadTopology(options.topology_path);
  if (options.model_path.empty()) {
    return absl::InvalidArgumentError("plan needs a topology file or --model FILE");
  }
  Topology topology;
  topology.source = "command line";
  ASSIGN_OR_RETURN(ModelEntry primary, Entry(options, options.model_path));
  topology.models.push_back(std::move(primary));
  if (!options.sidecar_path.empty()) {
    ASSIGN_OR_RETURN(ModelEntry sidecar, Entry(options, options.sidecar_path));
    sidecar.role = "sidecar";
    if (sidecar.name == topology.models[0].name) sidecar.name += "-sidecar";
    topology.models.push_back(std::move(sidecar));
  }
  RETURN_IF_ERROR(CheckModelFiles(topology));
  return topology;
}

// The machine this runs on, under the name the topology gives it.
absl::StatusOr<Rig> ThisMachine(const Topology& topology) {
  ASSIGN_OR_RETURN(HostFacts facts, CachedOrProbedFacts());
  if (!topology.hosts.empty()) facts.name = topology.hosts.front().name;
  Rig rig;
  rig.name = "this machine";
  rig.hosts.push_back(std::move(facts));
  return rig;
}

}  // namespace

CLI::App* AddPlan(CLI::App* app, PlanOptions* options) {
  CLI::App* plan = app->add_subcommand("plan", "show where models would be placed, and how fast");
  plan->add_option("topology", options->topology_path, "topology file");
  plan->add_option("--model", options->model_path, "GGUF file, in place of a topology")
      ->excludes("topology");
  plan->add_option("--sidecar", options->sidecar_path, "second model")->needs("--model");
  plan->add_option("--rig", options->rig_path, "plan for the hardware described in this file");
  plan->add_option("--context", options->context, "positions of one sequence")
      ->check(CLI::Range(64, 16 << 20));
  plan->add_option("--kv-cache", options->kv_cache, "f32, f16, q8_0 or q4_1")
      ->capture_default_str();
  plan->add_option("--slots", options->slots, "sequences at once")
      ->check(CLI::Range(1, 256))
      ->capture_default_str();
  plan->add_option("--ubatch", options->ubatch, "rows of the longest ubatch; default: planned")
      ->check(CLI::Range(16, 65536));
  plan->add_option("--stages", options->stages, "stages of a pipeline of CPU workers")
      ->check(CLI::Range(1, 64));
  plan->add_flag("--experts-worker", options->experts_worker,
                 "with CPU stages: routed experts in a worker of their own");
  plan->add_flag("--mtp", options->mtp, "with the multi-token prediction layer");
  plan->add_flag("--json", options->json, "as JSON");
  return plan;
}

absl::Status RunPlan(const PlanOptions& options) {
  ASSIGN_OR_RETURN(const Topology topology, TopologyOf(options));
  Rig rig;
  if (options.rig_path.empty()) {
    ASSIGN_OR_RETURN(rig, ThisMachine(topology));
  } else {
    ASSIGN_OR_RETURN(rig, LoadRig(options.rig_path));
  }
  ASSIGN_OR_RETURN(TopologyRequest request, RequestFor(topology, std::move(rig)));
  for (DeploymentWish& wish : request.request.deployments) {
    wish.max_tokens = options.ubatch;
    if (wish.sidecar) continue;
    wish.num_stages = options.stages;
    wish.experts_worker = options.experts_worker;
    wish.mtp = options.mtp;
  }
  ASSIGN_OR_RETURN(const Placement placement, PlanPlacement(request.request));
  std::puts(options.json ? PlacementJson(placement).c_str() : PlacementTable(placement).c_str());
  return absl::OkStatus();
}

}  // namespace packtrain

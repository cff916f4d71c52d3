#include "coordinator/cli/plan_command.h"

#include <CLI/CLI.hpp>
#include <cstdio>
#include <utility>

#include "common/base/status_macros.h"
#include "common/config/rig.h"
#include "coordinator/cli/host_probe.h"
#include "coordinator/placement/planner.h"
#include "coordinator/placement/report.h"
#include "coordinator/placement/topology_request.h"

namespace packtrain {

CLI::App* AddPlan(CLI::App* app, PlanOptions* options) {
  CLI::App* plan = app->add_subcommand("plan", "show where models would be placed, and how fast");
  AddServedModel(plan, &options->served);
  plan->add_option(
      "--rig", options->rig_path,
      "plan for the hardware of this file: YAML, or the facts that doctor keeps (JSON)");
  plan->add_flag("--mtp", options->mtp, "with the multi-token prediction layer");
  plan->add_flag("--json", options->json, "as JSON");
  return plan;
}

absl::Status RunPlan(const PlanOptions& options) {
  ASSIGN_OR_RETURN(const Topology topology, MakeTopology(options.served));
  Rig rig;
  if (options.rig_path.empty()) {
    ASSIGN_OR_RETURN(HostFacts facts, FactsForPlanning(Unmeasured::kMeasure));
    rig = RigAround(topology, std::move(facts));
  } else {
    ASSIGN_OR_RETURN(rig, LoadRig(options.rig_path));
  }
  ASSIGN_OR_RETURN(TopologyRequest request, RequestFor(topology, std::move(rig)));
  for (DeploymentWish& wish : request.request.deployments) {
    wish.mtp = options.mtp && !wish.sidecar;
  }
  ASSIGN_OR_RETURN(const Placement placement, PlanPlacement(request.request));
  std::puts(options.json ? PlacementJson(placement).c_str() : PlacementTable(placement).c_str());
  return absl::OkStatus();
}

}  // namespace packtrain

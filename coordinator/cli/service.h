#pragma once

// One model with its deployment and its workers, in this process: what `packtrain serve` puts
// behind an endpoint and `packtrain bench` measures.

#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/statusor.h"
#include "common/config/host_facts.h"
#include "common/config/topology.h"
#include "common/model/bill.h"
#include "coordinator/cli/load_display.h"
#include "coordinator/cli/served_model.h"
#include "coordinator/fleet/fleet_pipeline.h"
#include "coordinator/placement/placement.h"
#include "coordinator/placement/plan.h"

namespace packtrain {

// Told what a worker of a model holds, once it has loaded; from any thread.
using WorkerLoaded = std::function<void(const std::string& model, const WorkerPlan& worker,
                                        const WorkerMemory& memory)>;

class Service {
 public:
  // `display` is borrowed: it shows loading.
  Service(ServedModel model, DeploymentPlan plan, ModelFacts facts, SpeedPrediction speed,
          LoadDisplay* display, WorkerLoaded loaded);
  // Ends all requests and the workers started here.
  ~Service();

  // Shows warnings and returns; loading goes on in a thread, and the deployment's
  // state tells how it went.
  void Start();

  DeploymentRunner* deployment() const { return model_.deployment.get(); }
  const DeploymentPlan& plan() const { return plan_; }
  const ModelFacts& facts() const { return facts_; }
  const SpeedPrediction& speed() const { return speed_; }

 private:
  FleetOptions Options(WorkerLoaded loaded);

  LoadDisplay* const display_;
  ServedModel model_;
  const DeploymentPlan plan_;
  const ModelFacts facts_;
  const SpeedPrediction speed_;
  std::unique_ptr<FleetPipeline> fleet_;
  std::thread starter_;
};

// What plans shall also predict the speed of; empty: the usual depths and prompts.
struct SpeedQuestions {
  std::vector<int> depths, prompts;
};

// Plans and opens all models of the topology; starts and shows nothing. What workers hold once they
// have loaded is shown beside what was predicted; `loaded` may be null.
// Errors: those of OpenModel and of planning.
absl::StatusOr<std::vector<std::unique_ptr<Service>>> OpenServices(
    const Topology& topology, HostFacts this_host, const SpeedQuestions& questions,
    LoadDisplay* display, WorkerLoaded loaded, Placement* placement);

// Shows the plan as a table.
void ShowPlacement(const Placement& placement, LoadDisplay* display);

}  // namespace packtrain

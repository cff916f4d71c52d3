#pragma once

// One model with its deployment and its workers, in this process: what `packtrain serve` puts
// behind an endpoint and `packtrain bench` measures.

#include <memory>
#include <thread>
#include <vector>

#include "absl/status/statusor.h"
#include "common/config/topology.h"
#include "coordinator/cli/load_display.h"
#include "coordinator/cli/served_model.h"
#include "coordinator/fleet/fleet_pipeline.h"
#include "coordinator/placement/plan.h"

namespace packtrain {

class Service {
 public:
  // `display` is borrowed: it shows loading.
  Service(ServedModel model, DeploymentPlan plan, LoadDisplay* display);
  // Ends all requests and the workers started here.
  ~Service();

  // Shows warnings and the plan and returns; loading goes on in a thread, and the deployment's
  // state tells how it went.
  void Start();

  DeploymentRunner* deployment() const { return model_.deployment.get(); }
  const DeploymentPlan& plan() const { return plan_; }

 private:
  FleetOptions Options();

  LoadDisplay* const display_;
  ServedModel model_;
  DeploymentPlan plan_;
  std::unique_ptr<FleetPipeline> fleet_;
  std::thread starter_;
};

// Opens and plans all models of the topology; starts and shows nothing.
// `template_host` is borrowed by the deployments. Errors: those of OpenModel and of planning.
absl::StatusOr<std::vector<std::unique_ptr<Service>>> OpenServices(const Topology& topology,
                                                                   ChatTemplateHost* template_host,
                                                                   LoadDisplay* display);

}  // namespace packtrain

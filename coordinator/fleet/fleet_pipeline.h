#pragma once

// The workers of one deployment as a pipeline: starts or joins them, has them load and connect,
// sends steps, watches them, and replaces one that dies or hangs. A replacement loads from the
// weight segment that outlived its predecessor; all slots are lost then, and the owner is told so
// that it can replay its sequences.

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "coordinator/fleet/fleet_options.h"
#include "coordinator/placement/plan.h"
#include "coordinator/scheduler/pipeline.h"

namespace packtrain {

class FleetPipeline : public Pipeline {
 public:
  FleetPipeline(DeploymentPlan plan, FleetOptions options);
  // Stops.
  ~FleetPipeline() override;

  // Returns when all workers have loaded and are connected, or what went wrong, naming the worker.
  absl::Status Start();
  // Ends all workers started here; steps in flight fail with CANCELLED. Any thread, also during
  // Start.
  void Stop();

  FleetState state() const;
  // One line; why it is not ready.
  std::string reason() const;

  PipelineLimits limits() const override;
  void Submit(std::vector<Step> steps) override;
  void SetResultCallback(std::function<void(StepResult)> callback) override;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace packtrain

#pragma once

// What the fleet says to its workers, made from the plan.

#include <chrono>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "common/model/step.h"
#include "coordinator/fleet/fleet_worker.h"
#include "coordinator/fleet/link_choice.h"
#include "coordinator/placement/plan.h"

namespace packtrain {

// The chosen transport of each pair that is to be joined: (stage, next stage) and (stage, experts).
using LinkChoices = std::map<std::pair<FleetWorker*, FleetWorker*>, LinkChoice>;

// Payload of a hop that carries one token.
uint64_t DecodeBytes(const DeploymentPlan& plan);

// How long threads of the workers on one host may spin: 0 if all of them together outnumber its
// CPUs. `host_id` as the workers that joined have told it.
uint32_t SpinMicroseconds(const std::vector<std::unique_ptr<FleetWorker>>& workers,
                          const std::string& host_id);

bool ServesStage(const WorkerPlan& experts, const WorkerPlan& stage);

// A weight segment for each worker that is started here, sized by the file's headers.
// Errors: what reading the model says; RESOURCE_EXHAUSTED if this host cannot hold all of them.
absl::Status CreateWorkerSegments(const DeploymentPlan& plan,
                                  std::vector<std::unique_ptr<FleetWorker>>* workers);

v1::CoordinatorMessage LoadMessage(const DeploymentPlan& plan, const FleetWorker& worker,
                                   uint32_t spin_us);
v1::CoordinatorMessage MeasureMessage(const DeploymentPlan& plan, const v1::PeerInfo& peer,
                                      bool initiator, const std::vector<std::string>& transports);
v1::CoordinatorMessage ConnectMessage(const FleetWorker& worker,
                                      const std::vector<FleetWorker*>& all,
                                      const LinkChoices& choices, uint64_t epoch,
                                      std::chrono::milliseconds step_timeout);

// The steps in their order, together in one message unless that became too large.
std::vector<v1::CoordinatorMessage> StepsMessages(const std::vector<Step>& steps, uint64_t epoch);

}  // namespace packtrain

#pragma once

// The workers of one deployment: their processes and connections, what they load and how they are
// joined. One thread calls; what workers say comes from the connections' threads.

#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "coordinator/fleet/fleet_options.h"
#include "coordinator/fleet/fleet_worker.h"
#include "coordinator/fleet/link_choice.h"
#include "coordinator/fleet/socket_folder.h"
#include "coordinator/placement/plan.h"
#include "proto/control.pb.h"

namespace packtrain {

class Fleet {
 public:
  struct Events {
    std::function<void(const FleetWorker&, const v1::WorkerMessage&)> message;
    // A worker is gone or does not answer; names it.
    std::function<void(const absl::Status&)> lost;
    std::function<bool()> keep_waiting;  // false ends waiting for workers, any thread
  };

  // Both outlive the fleet.
  Fleet(const DeploymentPlan& plan, const FleetOptions& options, Events events)
      : plan_(plan), options_(options), events_(std::move(events)) {}

  // Addresses and keys are checked, weight segments made; nothing runs yet.
  absl::Status Prepare();
  // Starts or joins all workers under `epoch` and has them load. Errors name the worker.
  absl::Status Start(uint64_t epoch);
  // The same for those that are lost.
  absl::Status Restart(uint64_t epoch);
  // Joins all under `epoch`; returns the stages in the order of their layers.
  absl::StatusOr<std::vector<WorkerConnection*>> Connect(uint64_t epoch);

  // Asks all whether they work; tells of those that do not.
  void CheckHealth();
  // After a break: waits until those that caused it are known to be lost, cuts their connections,
  // and returns what is known of their end, or `why`.
  std::string Diagnose(const std::string& why);

  // Ends all processes started here: asked over their streams, asked by a signal, killed.
  void Stop();

 private:
  absl::Status StartWorker(uint64_t epoch, FleetWorker* worker, std::chrono::milliseconds timeout);
  // Answers to one request from several workers, in whatever time the slowest takes.
  absl::Status FinishAll(
      const std::vector<FleetWorker*>& workers, std::chrono::milliseconds timeout,
      const std::function<void(FleetWorker*, const v1::WorkerMessage&)>& answer = {});
  void TellLoaded(const FleetWorker& worker, const v1::Loaded& loaded);
  absl::Status Load(const std::vector<FleetWorker*>& workers);
  // Which transport joins two workers; measured once per pair.
  absl::StatusOr<LinkChoice> Choose(FleetWorker* a, FleetWorker* b, LinkUse use);
  absl::StatusOr<v1::HopMeasured> Measure(FleetWorker* a, FleetWorker* b,
                                          const std::vector<std::string>& candidates);
  void AwaitLoss();
  bool WaitEnded(std::chrono::milliseconds timeout);

  const DeploymentPlan& plan_;
  const FleetOptions& options_;
  const Events events_;
  std::unique_ptr<SocketFolder> sockets_;
  std::vector<std::unique_ptr<FleetWorker>> workers_;
  std::map<std::pair<std::string, std::string>, LinkChoice> choices_;
};

// `status` with the worker's name in front of its message.
absl::Status Named(const std::string& worker, const absl::Status& status);

}  // namespace packtrain

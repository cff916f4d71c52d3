#include "coordinator/placement/deployment_plan.h"

#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/base/status_macros.h"

namespace packtrain {
namespace {

class Translation {
 public:
  Translation(const Topology& topology, const ModelEntry& entry, const DeploymentPlacement& placed)
      : topology_(topology), entry_(entry), placed_(placed) {}

  absl::StatusOr<DeploymentPlan> Run(int hidden_dim) {
    plan_.name = entry_.name;
    plan_.model_path = entry_.path;
    plan_.hidden_dim = hidden_dim;
    plan_.kv_cache = placed_.shape.kv_cache;
    plan_.context_length = placed_.context;
    plan_.num_slots = placed_.shape.num_slots;
    plan_.num_pages = placed_.shape.num_pages;
    plan_.num_snapshots = placed_.shape.num_snapshots;
    plan_.max_tokens = placed_.shape.max_tokens;
    plan_.streamed_rows = placed_.shape.streamed_rows;
    plan_.insecure = topology_.insecure;
    plan_.tls = topology_.tls;
    for (size_t i = 0; i < placed_.stages.size(); ++i) {
      const StagePlacement& stage = placed_.stages[i];
      ASSIGN_OR_RETURN(WorkerPlan worker, Worker(stage.device, stage.wish, stage.threads));
      worker.name = absl::StrCat("stage", i);
      worker.role = WorkerRole::kStage;
      worker.layers = stage.layers;
      worker.resident_experts = stage.resident_experts;
      worker.bill = stage.bill;
      plan_.workers.push_back(std::move(worker));
    }
    for (size_t i = 0; i < placed_.experts.size(); ++i) {
      const ExpertsPlacement& experts = placed_.experts[i];
      ASSIGN_OR_RETURN(WorkerPlan worker, Worker(experts.device, experts.wish, experts.threads));
      worker.name = absl::StrCat("experts", i);
      worker.role = WorkerRole::kExperts;
      worker.expert_layers = experts.layers;
      worker.bill = experts.bill;
      plan_.workers.push_back(std::move(worker));
    }
    PinLinks();
    return std::move(plan_);
  }

 private:
  absl::StatusOr<WorkerPlan> Worker(const DeviceName& device, int wish, int threads) {
    WorkerPlan worker;
    worker.device = device.device;
    worker.threads = threads;
    if (wish >= 0) {
      const WorkerEntry& entry = entry_.workers[static_cast<size_t>(wish)];
      worker.address = entry.address;
      // Of another host's cores the worker itself knows best.
      if (!entry.address.empty()) worker.threads = entry.threads;
    } else if (!topology_.hosts.empty() && device.host != topology_.hosts.front().name) {
      return absl::InvalidArgumentError(absl::StrFormat(
          "model \"%s\": the plan needs a worker on %s, where none can be started: list one with "
          "its address",
          entry_.name, device.text()));
    }
    devices_.push_back(topology_.hosts.empty() ? "localhost/" + device.device : device.text());
    return worker;
  }

  // Names of the workers on a device; "*" stands for all.
  std::vector<std::string> NamesOn(const std::string& device) const {
    if (device == "*") return {"*"};
    std::vector<std::string> names;
    for (size_t i = 0; i < devices_.size(); ++i) {
      if (devices_[i] == device) names.push_back(plan_.workers[i].name);
    }
    return names;
  }

  void PinLinks() {
    for (const LinkEntry& link : topology_.links) {
      for (const std::string& from : NamesOn(link.between[0])) {
        for (const std::string& to : NamesOn(link.between[1])) {
          if (from == to && from != "*") continue;
          plan_.links.push_back({.from = from, .to = to, .transport = link.transport});
        }
      }
    }
  }

  const Topology& topology_;
  const ModelEntry& entry_;
  const DeploymentPlacement& placed_;
  DeploymentPlan plan_;
  std::vector<std::string> devices_;  // of plan_.workers
};

}  // namespace

absl::StatusOr<DeploymentPlan> DeploymentPlanOf(const Topology& topology, const ModelEntry& entry,
                                                const DeploymentPlacement& placed, int hidden_dim) {
  return Translation(topology, entry, placed).Run(hidden_dim);
}

}  // namespace packtrain

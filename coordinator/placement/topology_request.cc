#include "coordinator/placement/topology_request.h"

#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "common/base/status_macros.h"
#include "common/weights/gguf.h"

namespace packtrain {
namespace {

// Of a model whose slots nobody has chosen.
constexpr int kSlots = 8, kLeastSlots = 4;

absl::StatusOr<WorkerWish> WishOf(const Topology& topology, const WorkerEntry& entry,
                                  const Rig& rig) {
  WorkerWish wish;
  // Without named hosts everything is on this machine, which the rig describes first.
  wish.device.host = topology.hosts.empty() ? rig.hosts.front().name : entry.host;
  wish.device.device = entry.device;
  wish.role = entry.role == WorkerRole::kExperts ? WishedRole::kExperts : WishedRole::kStage;
  wish.threads = entry.threads;
  wish.memory = entry.memory_bytes;
  if (entry.role == WorkerRole::kExperts) {
    if (entry.layers) wish.experts.push_back(*entry.layers);
  } else {
    wish.layers = entry.layers;
    wish.resident_experts = entry.resident_experts;
  }
  if (rig.FindHost(wish.device.host) == nullptr) {
    const std::string names = absl::StrJoin(
        rig.hosts, ", ", [](std::string* out, const HostFacts& host) { out->append(host.name); });
    return absl::InvalidArgumentError(absl::StrCat(topology.source, ":", entry.line,
                                                   ": nothing is known of host '", wish.device.host,
                                                   "'; the rig has ", names));
  }
  return wish;
}

void AddUnknownGpu(const WorkerEntry& worker, HostFacts* host) {
  int index = -1;
  if (!absl::SimpleAtoi(absl::StripPrefix(worker.device, "cuda:"), &index)) return;
  for (const GpuFacts& gpu : host->gpus) {
    if (gpu.index == index) return;
  }
  GpuFacts gpu;
  gpu.index = index;
  host->gpus.push_back(gpu);
}

}  // namespace

Rig RigAround(const Topology& topology, HostFacts this_host) {
  Rig rig;
  rig.name = "this machine";
  if (!topology.hosts.empty()) this_host.name = topology.hosts.front().name;
  HostFacts other = this_host;
  other.memory = {};
  other.gpus.clear();
  rig.hosts.push_back(std::move(this_host));
  for (size_t i = 1; i < topology.hosts.size(); ++i) {
    rig.name = "this machine and others, of which nothing is known";
    other.name = topology.hosts[i].name;
    rig.hosts.push_back(other);
  }
  for (const ModelEntry& model : topology.models) {
    for (const WorkerEntry& worker : model.workers) {
      const std::string& name = topology.hosts.empty() ? rig.hosts.front().name : worker.host;
      for (HostFacts& host : rig.hosts) {
        if (host.name == name) AddUnknownGpu(worker, &host);
      }
    }
  }
  return rig;
}

absl::StatusOr<TopologyRequest> RequestFor(const Topology& topology, Rig rig) {
  TopologyRequest result;
  for (const ModelEntry& entry : topology.models) {
    ASSIGN_OR_RETURN(const std::unique_ptr<GgufFile> file, GgufFile::Open(entry.path));
    ASSIGN_OR_RETURN(ModelFacts facts, ReadModelFacts(*file));
    result.models.push_back(std::make_unique<ModelFacts>(std::move(facts)));
    RETURN_IF_ERROR(CheckLayers(topology, entry, result.models.back()->config.num_layers));
    DeploymentWish wish;
    wish.name = entry.name;
    if (entry.line > 0) wish.place = absl::StrCat(topology.source, ":", entry.line, ": ");
    wish.threads = entry.threads;
    wish.path = entry.path;
    wish.sidecar = entry.role == "sidecar";
    wish.model = result.models.back().get();
    wish.context = entry.context;
    wish.kv_cache = entry.kv_cache;
    wish.num_slots = entry.slots > 0 ? entry.slots : kSlots;
    wish.least_slots = entry.slots > 0 ? entry.slots : kLeastSlots;
    wish.max_tokens = entry.ubatch;
    for (const WorkerEntry& worker : entry.workers) {
      ASSIGN_OR_RETURN(WorkerWish worker_wish, WishOf(topology, worker, rig));
      wish.workers.push_back(std::move(worker_wish));
    }
    result.request.deployments.push_back(std::move(wish));
  }
  result.request.rig = std::move(rig);
  return result;
}

}  // namespace packtrain

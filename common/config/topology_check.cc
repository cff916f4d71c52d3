// The checks between the entries of a topology, and against the model.

#include <algorithm>
#include <filesystem>
#include <map>
#include <set>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "common/base/status_macros.h"
#include "common/config/topology.h"

namespace packtrain {
namespace {

class Checker {
 public:
  explicit Checker(Topology* topology) : topology_(topology) {}

  absl::Status Run() {
    RETURN_IF_ERROR(CheckHosts());
    if (topology_->insecure && topology_->tls.given()) {
      return Error(topology_->tls_line, "tls and insecure: true exclude each other");
    }
    RETURN_IF_ERROR(CheckModels());
    for (ModelEntry& model : topology_->models) RETURN_IF_ERROR(CheckWorkers(&model));
    return CheckLinks();
  }

 private:
  absl::Status Error(int line, absl::string_view what) const {
    return absl::InvalidArgumentError(absl::StrCat(topology_->source, ":", line, ": ", what));
  }

  absl::Status CheckHosts() {
    std::map<std::string, int> lines;
    for (const HostEntry& host : topology_->hosts) {
      const auto [it, added] = lines.emplace(host.name, host.line);
      if (!added) {
        return Error(host.line, absl::StrFormat("host \"%s\" is named on line %d already",
                                                host.name, it->second));
      }
    }
    return absl::OkStatus();
  }

  absl::Status CheckModels() {
    if (topology_->models.empty()) return Error(1, "models: is empty; allowed: at least one model");
    std::map<std::string, int> lines;
    const ModelEntry* primary = nullptr;
    for (const ModelEntry& model : topology_->models) {
      const auto [it, added] = lines.emplace(model.name, model.line);
      if (!added) {
        return Error(model.line, absl::StrFormat("model \"%s\" is named on line %d already",
                                                 model.name, it->second));
      }
      if (model.role != "primary") continue;
      if (primary != nullptr) {
        return Error(model.line,
                     absl::StrFormat("\"%s\" and \"%s\" (line %d) are both primary; allowed: one, "
                                     "the others have role: sidecar",
                                     model.name, primary->name, primary->line));
      }
      primary = &model;
    }
    return absl::OkStatus();
  }

  absl::Status CheckWorkers(ModelEntry* model) {
    bool has_stage = false;
    for (WorkerEntry& worker : model->workers) {
      has_stage = has_stage || worker.role == WorkerRole::kStage;
      if (worker.threads == 0) worker.threads = model->threads;
      RETURN_IF_ERROR(CheckWorker(&worker));
    }
    if (!has_stage && !model->workers.empty()) {
      return Error(model->line,
                   absl::StrFormat("model \"%s\" has no worker with role stage", model->name));
    }
    return CheckOverlaps(*model);
  }

  absl::Status CheckWorker(WorkerEntry* worker) {
    if (worker->host.empty() && topology_->hosts.empty()) {
      worker->host = "localhost";
    } else if (topology_->hosts.empty()) {
      return Error(worker->line, absl::StrFormat("device \"%s\" names a host, but the topology has "
                                                 "no hosts; allowed: \"%s\", or a list of hosts",
                                                 worker->device_name(), worker->device));
    } else if (!KnownHost(worker->host)) {
      const auto name = [](std::string* out, const HostEntry& host) { *out += host.name; };
      return Error(worker->line,
                   absl::StrFormat("device \"%s\" names no host of this topology; allowed: %s",
                                   worker->host.empty() ? worker->device : worker->device_name(),
                                   absl::StrJoin(topology_->hosts, ", ", name)));
    }
    if (worker->address.empty() && !topology_->hosts.empty() &&
        worker->host != topology_->hosts.front().name) {
      return Error(
          worker->line,
          absl::StrFormat("host \"%s\" is another machine (the first host, \"%s\", is this "
                          "one); its workers run already and need an address: HOST:PORT",
                          worker->host, topology_->hosts.front().name));
    }
    if (worker->role == WorkerRole::kExperts && worker->device != "cpu") {
      return Error(worker->line, absl::StrFormat("an experts worker runs on a cpu, not on %s",
                                                 worker->device_name()));
    }
    if (worker->resident_experts && worker->role == WorkerRole::kExperts) {
      return Error(worker->line, "resident_experts is for stages; an experts worker has layers");
    }
    if (worker->resident_experts && !worker->resident_experts->empty() && worker->layers &&
        (worker->resident_experts->first < worker->layers->first ||
         worker->resident_experts->last > worker->layers->last)) {
      return Error(
          worker->line,
          absl::StrFormat("resident_experts %s lie outside the worker's layers %s",
                          FormatLayers(*worker->resident_experts), FormatLayers(*worker->layers)));
    }
    if (worker->device == "cpu") {
      if (worker->memory_bytes == 0) return absl::OkStatus();
      return Error(worker->line, "memory_gib is for workers on a GPU");
    }
    // A GPU's memory has one owner, unless each says how much of it is its own.
    const auto [it, added] = devices_.emplace(worker->device_name(), *worker);
    if (added || (worker->memory_bytes > 0 && it->second.memory_bytes > 0)) return absl::OkStatus();
    return Error(worker->line,
                 absl::StrFormat("device %s belongs to the worker on line %d already; to share it "
                                 "both need memory_gib",
                                 worker->device_name(), it->second.line));
  }

  bool KnownHost(const std::string& name) const {
    return std::any_of(topology_->hosts.begin(), topology_->hosts.end(),
                       [&](const HostEntry& host) { return host.name == name; });
  }

  absl::Status CheckOverlaps(const ModelEntry& model) const {
    for (const WorkerEntry& a : model.workers) {
      for (const WorkerEntry& b : model.workers) {
        if (&a == &b) break;
        if (a.role != b.role || !a.layers || !b.layers) continue;
        const int first = std::max(a.layers->first, b.layers->first);
        const int last = std::min(a.layers->last, b.layers->last);
        if (first >= last) continue;
        return Error(a.line,
                     absl::StrFormat("layers %s belong to the worker on line %d already (%s)",
                                     FormatLayers({first, last}), b.line, FormatLayers(*b.layers)));
      }
    }
    return absl::OkStatus();
  }

  absl::Status CheckLinks() const {
    std::set<std::string> devices = {"*"};
    for (const ModelEntry& model : topology_->models) {
      for (const WorkerEntry& worker : model.workers) devices.insert(worker.device_name());
    }
    for (const LinkEntry& link : topology_->links) {
      for (const std::string& device : link.between) {
        if (devices.contains(device)) continue;
        return Error(link.line, absl::StrFormat("links: no worker has device \"%s\"; allowed: %s",
                                                device, absl::StrJoin(devices, ", ")));
      }
    }
    return absl::OkStatus();
  }

  Topology* topology_;
  std::map<std::string, WorkerEntry> devices_;  // the first worker of each GPU
};

}  // namespace

absl::Status CheckTopology(Topology* topology) { return Checker(topology).Run(); }

absl::Status CheckModelFiles(const Topology& topology) {
  for (const ModelEntry& model : topology.models) {
    std::error_code error;
    if (std::filesystem::is_regular_file(model.path, error)) continue;
    const std::string place =
        model.line > 0 ? absl::StrCat(topology.source, ":", model.line, ": ") : "";
    return absl::NotFoundError(
        absl::StrFormat("%smodel \"%s\": there is no file %s", place, model.name, model.path));
  }
  return absl::OkStatus();
}

absl::Status CheckLayers(const Topology& topology, const ModelEntry& model, int num_layers) {
  const auto error = [&](int line, absl::string_view what) {
    const std::string place = line > 0 ? absl::StrCat(topology.source, ":", line, ": ") : "";
    return absl::InvalidArgumentError(absl::StrCat(place, "model \"", model.name, "\": ", what));
  };
  const std::string allowed = FormatLayers({0, num_layers});
  std::vector<LayerRange> pins;
  int unpinned = 0;
  for (const WorkerEntry& worker : model.workers) {
    for (const std::optional<LayerRange>& range : {worker.layers, worker.resident_experts}) {
      if (range && range->last > num_layers) {
        return error(worker.line, absl::StrFormat("layers %s; this model has %s",
                                                  FormatLayers(*range), allowed));
      }
    }
    if (worker.role != WorkerRole::kStage) continue;
    if (worker.layers) {
      pins.push_back(*worker.layers);
    } else {
      ++unpinned;
    }
  }
  if (model.workers.empty()) return absl::OkStatus();
  std::sort(pins.begin(), pins.end(), [](LayerRange a, LayerRange b) { return a.first < b.first; });
  pins.push_back({num_layers, num_layers});
  int next = 0, gaps = 0, left = 0;
  for (const LayerRange& pin : pins) {
    if (pin.first > next && ++gaps > unpinned) {
      return error(model.line, absl::StrFormat("layers %s belong to no stage; this model has %s",
                                               FormatLayers({next, pin.first}), allowed));
    }
    left += pin.first - next;
    next = pin.last;
  }
  if (unpinned > left) {
    return error(model.line,
                 absl::StrFormat("%d stages that name no layers are too many; %d layers are left",
                                 unpinned, left));
  }
  return absl::OkStatus();
}

}  // namespace packtrain

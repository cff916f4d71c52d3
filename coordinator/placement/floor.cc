#include "coordinator/placement/floor.h"

#include <algorithm>
#include <map>

#include "absl/strings/str_cat.h"
#include "coordinator/placement/work.h"

namespace packtrain {
namespace {

size_t S(int value) { return static_cast<size_t>(value); }

// Bytes per second; 0: not measured.
double ReadRateOf(const HostFacts& host, const WorkerPlan& worker) {
  if (worker.device == "cpu") {
    return host.DramRead(worker.threads > 0 ? worker.threads : host.cpu.cores) * 1e9;
  }
  for (const GpuFacts& gpu : host.gpus) {
    if (worker.device == absl::StrCat("cuda:", gpu.index)) return gpu.read_gb_per_s * 1e9;
  }
  return 0;
}

// Bytes that a worker reads for one step of `rows` sequences.
double BytesOf(const ModelFacts& model, const DeploymentPlan& plan, const WorkerPlan& worker,
               int rows, int depth) {
  const double touched = TouchedShare(model.config, rows);
  double bytes = 0;
  for (int l = worker.layers.first; l < worker.layers.last; ++l) {
    const LayerWeightBytes& weights = model.weights.layers[S(l)];
    bytes += static_cast<double>(weights.attention + weights.indexer + weights.feed_forward);
    bytes += rows * CacheReadBytes(model.config, plan.kv_cache, l, depth);
  }
  if (worker.role == WorkerRole::kStage && worker.layers.last == model.config.num_layers) {
    bytes += static_cast<double>(model.weights.head);
  }
  const auto add_experts = [&](const LayerRange& range) {
    for (int l = range.first; l < range.last; ++l) {
      bytes += static_cast<double>(model.weights.layers[S(l)].experts) * touched;
    }
  };
  add_experts(worker.resident_experts);
  for (const LayerRange& range : worker.expert_layers) add_experts(range);
  return bytes;
}

}  // namespace

std::optional<DecodeFloor> FloorOfDecode(const ModelFacts& model, const DeploymentPlan& plan,
                                         const HostFacts& host, int streams, int depth) {
  const int stages = static_cast<int>(
      std::count_if(plan.workers.begin(), plan.workers.end(),
                    [](const WorkerPlan& w) { return w.role == WorkerRole::kStage; }));
  // As many groups as there are stages go round, each through all workers in turn.
  const int groups = std::max(std::min(streams, stages), 1);
  const int rows = streams / groups, larger_groups = streams % groups;
  DecodeFloor floor;
  std::map<std::string, double> busy;  // seconds of a device in one round of all groups
  double pass = 0;                     // seconds of one group through all workers
  for (const WorkerPlan& worker : plan.workers) {
    const double rate = ReadRateOf(host, worker);
    if (!worker.address.empty() || rate <= 0) return std::nullopt;
    const double bytes = BytesOf(model, plan, worker, rows, depth);
    double round_bytes = (groups - larger_groups) * bytes;
    if (larger_groups > 0) {
      round_bytes += larger_groups * BytesOf(model, plan, worker, rows + 1, depth);
    }
    floor.bytes += round_bytes;
    pass += bytes / rate;
    busy[worker.device == "cpu" ? "cpu DRAM" : worker.device + " memory"] += round_bytes / rate;
  }
  double round = pass, longest = -1;
  for (const auto& [device, seconds] : busy) {
    round = std::max(round, seconds);
    if (seconds > longest) {
      longest = seconds;
      floor.bound = device;
    }
  }
  floor.tokens_per_s = streams / round;
  return floor;
}

}  // namespace packtrain

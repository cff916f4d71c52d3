#include "coordinator/placement/floor.h"

#include <algorithm>
#include <map>

#include "absl/strings/str_cat.h"
#include "common/model/step.h"
#include "coordinator/placement/work.h"

namespace packtrain {
namespace {

size_t S(int value) { return static_cast<size_t>(value); }

// Per second; 0: not measured.
struct DeviceRates {
  double read = 0;   // bytes
  double flops = 0;  // of products of many tokens
  double link = 0;   // bytes to a GPU
};

DeviceRates RatesOf(const HostFacts& host, const WorkerPlan& worker) {
  if (worker.device == "cpu") {
    const int threads = worker.threads > 0 ? worker.threads : host.cpu.cores;
    DeviceRates rates = {.read = host.DramRead(threads) * 1e9};
    for (const WeightRate& rate : host.weight_rates) {
      rates.flops = std::max(rates.flops, rate.tflops * 1e12);
    }
    rates.flops *= std::min(threads / static_cast<double>(std::max(host.cpu.cores, 1)), 1.0);
    return rates;
  }
  for (const GpuFacts& gpu : host.gpus) {
    if (worker.device != absl::StrCat("cuda:", gpu.index)) continue;
    return {.read = gpu.read_gb_per_s * 1e9,
            .flops = gpu.bf16_tflops * 1e12,
            .link = gpu.to_device_gb_per_s * 1e9};
  }
  return {};
}

double Bytes(uint64_t bytes) { return static_cast<double>(bytes); }

bool IsStage(const WorkerPlan& worker) { return worker.role == WorkerRole::kStage; }

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
  if (IsStage(worker) && worker.layers.last == model.config.num_layers) {
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

// What one ubatch of a prompt asks of a worker.
struct UbatchWork {
  double read = 0, flops = 0, copied = 0;
};

class PrefillWork {
 public:
  PrefillWork(const ModelFacts& model, const DeploymentPlan& plan) : model_(model), plan_(plan) {}

  // Of `rows` rows behind `depth` positions.
  UbatchWork Of(const WorkerPlan& worker, int rows, int depth) const {
    UbatchWork work;
    for (int l = worker.layers.first; l < worker.layers.last; ++l) {
      const LayerWeightBytes& weights = model_.weights.layers[S(l)];
      work.read += Bytes(weights.attention + weights.indexer + weights.feed_forward);
      work.flops += rows * (2 * Bytes(weights.parameters) +
                            AttentionFlops(model_.config, l, depth + rows / 2.0));
      const bool here = worker.resident_experts.first <= l && l < worker.resident_experts.last;
      if (here || Streams(worker, rows)) {
        AddExperts(l, rows, &work);
        // They come over the link once and are read from the device's memory like others.
        if (!here) work.copied += Bytes(weights.experts);
      }
    }
    for (const LayerRange& range : worker.expert_layers) {
      for (int l = range.first; l < range.last; ++l) {
        if (!Streams(StageOf(l), rows)) AddExperts(l, rows, &work);
      }
    }
    return work;
  }

 private:
  bool Streams(const WorkerPlan& stage, int rows) const {
    return stage.device != "cpu" && StreamsExperts(plan_.streamed_rows, rows);
  }
  const WorkerPlan& StageOf(int layer) const {
    return *std::find_if(plan_.workers.begin(), plan_.workers.end(), [&](const WorkerPlan& w) {
      return IsStage(w) && w.layers.first <= layer && layer < w.layers.last;
    });
  }
  void AddExperts(int layer, int rows, UbatchWork* work) const {
    const MoeConfig& moe = model_.config.moe;
    const LayerWeightBytes& weights = model_.weights.layers[S(layer)];
    if (weights.experts == 0) return;
    work->read += Bytes(weights.experts) * TouchedShare(model_.config, rows);
    work->flops += 2.0 * rows * Bytes(weights.expert_parameters) * moe.top_k / moe.num_experts;
  }

  const ModelFacts& model_;
  const DeploymentPlan& plan_;
};

}  // namespace

std::optional<SpeedFloor> FloorOfDecode(const ModelFacts& model, const DeploymentPlan& plan,
                                        const HostFacts& host, int streams, int depth) {
  const int stages =
      static_cast<int>(std::count_if(plan.workers.begin(), plan.workers.end(), IsStage));
  // As many groups as there are stages go round, each through all workers in turn.
  const int groups = std::max(std::min(streams, stages), 1);
  const int rows = streams / groups, larger_groups = streams % groups;
  SpeedFloor floor;
  std::map<std::string, double> busy;  // seconds of a device in one round of all groups
  double pass = 0;                     // seconds of one group through all workers
  for (const WorkerPlan& worker : plan.workers) {
    const double rate = RatesOf(host, worker).read;
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

std::optional<SpeedFloor> FloorOfPrefill(const ModelFacts& model, const DeploymentPlan& plan,
                                         const HostFacts& host, int prompt) {
  const PrefillWork work(model, plan);
  std::map<std::string, double> busy;   // seconds of all ubatches, by device
  std::map<std::string, double> first;  // of the first one
  std::map<std::string, double> parts;  // seconds of what a device is busy with
  SpeedFloor floor;
  for (const WorkerPlan& worker : plan.workers) {
    const DeviceRates rates = RatesOf(host, worker);
    if (!worker.address.empty() || rates.read <= 0 || rates.flops <= 0) return std::nullopt;
    for (int done = 0; done < prompt; done += plan.max_tokens) {
      const UbatchWork ubatch = work.Of(worker, std::min(plan.max_tokens, prompt - done), done);
      if (ubatch.copied > 0 && rates.link <= 0) return std::nullopt;
      const double read = ubatch.read / rates.read, products = ubatch.flops / rates.flops,
                   copies = ubatch.copied > 0 ? ubatch.copied / rates.link : 0;
      floor.bytes += ubatch.read;
      parts[worker.device == "cpu" ? "cpu DRAM" : worker.device + " memory"] += read;
      parts[worker.device + " products"] += products;
      parts[worker.device + " link"] += copies;
      const double seconds = std::max({read, products, copies});
      busy[worker.device] += seconds;
      if (done == 0) first[worker.device] += seconds;
    }
  }
  // Devices work at once on different ubatches; the first one passes all of them in turn.
  double pass = 0, seconds = 0;
  for (const auto& [device, one] : first) pass += one;
  for (const auto& [device, all] : busy) {
    seconds = std::max(seconds, all + pass - first[device]);
  }
  floor.bound = std::max_element(parts.begin(), parts.end(), [](const auto& a, const auto& b) {
                  return a.second < b.second;
                })->first;
  floor.tokens_per_s = prompt / seconds;
  return floor;
}

}  // namespace packtrain

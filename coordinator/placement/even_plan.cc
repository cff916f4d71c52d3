#include "coordinator/placement/even_plan.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/base/status_macros.h"
#include "common/model/step.h"

namespace packtrain {
namespace {

constexpr int kUbatch = 512;
// Copying a layer's experts to a GPU takes as long for few rows as for many.
constexpr int kGpuUbatch = 2048;
// Beside one full context there is room for this much of every other slot's.
constexpr int kPositionsPerSlot = 4096;
constexpr int kSnapshots = 16;
// For activations, transport buffers and the processes themselves.
constexpr uint64_t kReserveBytes = uint64_t{1} << 30;

int PagesFor(int positions) { return (positions + kPagePositions - 1) / kPagePositions; }

class Planner {
 public:
  explicit Planner(const EvenPlanInput& input)
      : input_(input), model_(*input.model), config_(*input.config) {}

  absl::StatusOr<EvenPlan> Run() {
    DeploymentPlan& plan = result_.plan;
    plan.name = model_.name;
    plan.model_path = model_.path;
    plan.hidden_dim = config_.hidden_dim;
    plan.kv_cache = model_.kv_cache;
    plan.context_length = model_.context;
    plan.num_slots = model_.slots;
    plan.insecure = input_.topology->insecure;
    RETURN_IF_ERROR(PlaceStages());
    plan.max_tokens = Ubatch();
    RETURN_IF_ERROR(PlaceExperts());
    RETURN_IF_ERROR(FitMemory());
    PinLinks();
    return std::move(result_);
  }

 private:
  absl::Status Error(int line, const std::string& what) const {
    const std::string place =
        line > 0 ? absl::StrCat(input_.topology->source, ":", line, ": ") : std::string();
    return absl::InvalidArgumentError(absl::StrCat(place, "model \"", model_.name, "\": ", what));
  }

  // Layers that no pin names, as ranges from the first to the last.
  std::vector<LayerRange> Gaps() const {
    std::vector<LayerRange> pins;
    for (const WorkerEntry& worker : model_.workers) {
      if (worker.role == WorkerRole::kStage && worker.layers) pins.push_back(*worker.layers);
    }
    std::sort(pins.begin(), pins.end(),
              [](LayerRange a, LayerRange b) { return a.first < b.first; });
    pins.push_back({config_.num_layers, config_.num_layers});
    std::vector<LayerRange> gaps;
    int next = 0;
    for (LayerRange pin : pins) {
      if (pin.first > next) gaps.push_back({next, pin.first});
      next = pin.last;
    }
    return gaps;
  }

  // Each gap gets a stage; further ones go where a stage has the most layers.
  absl::StatusOr<std::vector<LayerRange>> ShareGaps(int stages) const {
    const std::vector<LayerRange> gaps = Gaps();
    if (stages < static_cast<int>(gaps.size())) {
      return Error(model_.line, absl::StrFormat("layers %s belong to no stage",
                                                FormatLayers(gaps[static_cast<size_t>(stages)])));
    }
    std::vector<int> shares(gaps.size(), 1);
    for (int left = stages - static_cast<int>(gaps.size()); left > 0; --left) {
      size_t widest = gaps.size();
      for (size_t i = 0; i < gaps.size(); ++i) {
        if (gaps[i].size() == shares[i]) continue;
        if (widest == gaps.size() ||
            gaps[i].size() * shares[widest] > gaps[widest].size() * shares[i]) {
          widest = i;
        }
      }
      if (widest == gaps.size()) {
        return Error(model_.line,
                     absl::StrFormat("%d stages that name no layers are too many; %d are left",
                                     stages, stages - left));
      }
      ++shares[widest];
    }
    std::vector<LayerRange> ranges;
    for (size_t i = 0; i < gaps.size(); ++i) {
      for (int k = 0; k < shares[i]; ++k) {
        ranges.push_back({gaps[i].first + gaps[i].size() * k / shares[i],
                          gaps[i].first + gaps[i].size() * (k + 1) / shares[i]});
      }
    }
    return ranges;
  }

  WorkerPlan StartOf(const WorkerEntry& entry) const {
    WorkerPlan worker;
    worker.device = entry.device;
    worker.address = entry.address;
    worker.role = entry.role;
    worker.threads = entry.threads;
    return worker;
  }

  absl::Status PlaceStages() {
    const auto unpinned = std::count_if(
        model_.workers.begin(), model_.workers.end(),
        [](const WorkerEntry& w) { return w.role == WorkerRole::kStage && !w.layers; });
    ASSIGN_OR_RETURN(const std::vector<LayerRange> shares, ShareGaps(static_cast<int>(unpinned)));
    size_t next_share = 0;
    std::vector<std::pair<WorkerPlan, const WorkerEntry*>> stages;
    for (const WorkerEntry& entry : model_.workers) {
      has_experts_worker_ = has_experts_worker_ || entry.role == WorkerRole::kExperts;
      if (entry.role != WorkerRole::kStage) continue;
      stages.emplace_back(StartOf(entry), &entry);
      stages.back().first.layers = entry.layers ? *entry.layers : shares[next_share++];
    }
    std::sort(stages.begin(), stages.end(), [](const auto& a, const auto& b) {
      return a.first.layers.first < b.first.layers.first;
    });
    for (auto& [stage, entry] : stages) {
      stage.name = absl::StrCat("stage", result_.plan.workers.size());
      if (entry->resident_experts) {
        stage.resident_experts = *entry->resident_experts;
      } else if (!has_experts_worker_) {
        stage.resident_experts = stage.layers;
      }
      if (stage.resident_experts.size() > 0 && (stage.resident_experts.first < stage.layers.first ||
                                                stage.resident_experts.last > stage.layers.last)) {
        return Error(entry->line, absl::StrFormat("resident_experts %s lie outside the layers %s "
                                                  "that the worker was given",
                                                  FormatLayers(stage.resident_experts),
                                                  FormatLayers(stage.layers)));
      }
      result_.plan.workers.push_back(stage);
      devices_.push_back(entry->device_name());
    }
    return absl::OkStatus();
  }

  int Ubatch() const {
    if (model_.ubatch > 0) return model_.ubatch;
    const std::vector<WorkerPlan>& workers = result_.plan.workers;
    const bool gpu = std::any_of(workers.begin(), workers.end(),
                                 [](const WorkerPlan& w) { return w.device != "cpu"; });
    return gpu ? kGpuUbatch : kUbatch;
  }

  bool HasExperts(int layer) const {
    return config_.layers[static_cast<size_t>(layer)].ffn == FfnKind::kMoe;
  }

  // Runs of layers within a stage whose routed experts are not resident there.
  std::vector<LayerRange> HomelessExperts() const {
    std::vector<LayerRange> ranges;
    for (const WorkerPlan& stage : result_.plan.workers) {
      bool open = false;
      for (int layer = stage.layers.first; layer < stage.layers.last; ++layer) {
        const bool resident =
            layer >= stage.resident_experts.first && layer < stage.resident_experts.last;
        if (resident || !HasExperts(layer)) {
          open = false;
        } else if (open) {
          ++ranges.back().last;
        } else {
          ranges.push_back({layer, layer + 1});
          open = true;
        }
      }
    }
    return ranges;
  }

  absl::Status PlaceExperts() {
    std::vector<LayerRange> homeless = HomelessExperts();
    int unpinned = 0;
    std::vector<WorkerPlan> workers;
    for (const WorkerEntry& entry : model_.workers) {
      if (entry.role != WorkerRole::kExperts) continue;
      WorkerPlan worker = StartOf(entry);
      worker.name = absl::StrCat("experts", workers.size());
      if (entry.layers) {
        worker.expert_layers = TakeFrom(&homeless, *entry.layers);
      } else {
        ++unpinned;
      }
      workers.push_back(std::move(worker));
      devices_.push_back(entry.device_name());
      experts_.push_back(&entry);
    }
    int layers = 0;
    for (LayerRange range : homeless) layers += range.size();
    if (layers > 0 && unpinned == 0) {
      return Error(model_.line, absl::StrFormat("the routed experts of layers %s belong to nobody",
                                                FormatLayers(homeless.front())));
    }
    for (size_t i = 0; i < workers.size(); ++i) {
      if (!experts_[i]->layers) {
        // An even share of what is left, in order.
        int take = (layers + unpinned - 1) / unpinned;
        --unpinned;
        layers -= take;
        while (take > 0) {
          LayerRange& range = homeless.front();
          const int part = std::min(take, range.size());
          workers[i].expert_layers.push_back({range.first, range.first + part});
          range.first += part;
          take -= part;
          if (range.size() == 0) homeless.erase(homeless.begin());
        }
      }
      if (workers[i].expert_layers.empty()) {
        return Error(experts_[i]->line, "no routed experts are left for this experts worker");
      }
      result_.plan.workers.push_back(std::move(workers[i]));
    }
    return absl::OkStatus();
  }

  static std::vector<LayerRange> TakeFrom(std::vector<LayerRange>* ranges, LayerRange wanted) {
    std::vector<LayerRange> taken, left;
    for (LayerRange range : *ranges) {
      const LayerRange both = {std::max(range.first, wanted.first),
                               std::min(range.last, wanted.last)};
      if (both.size() <= 0) {
        left.push_back(range);
        continue;
      }
      taken.push_back(both);
      if (range.first < both.first) left.push_back({range.first, both.first});
      if (both.last < range.last) left.push_back({both.last, range.last});
    }
    *ranges = left;
    return taken;
  }

  // A GPU has memory of its own and checks it itself.
  static bool InThisMemory(const WorkerPlan& worker) {
    return worker.address.empty() && worker.device == "cpu";
  }

  // By layers, the bulk of each being its experts (or all of it, where it has none).
  uint64_t LocalWeightBytes() const {
    int layers = 0;
    for (const WorkerPlan& worker : result_.plan.workers) {
      if (!InThisMemory(worker)) continue;
      for (LayerRange range : worker.expert_layers) layers += range.size();
      for (int l = worker.layers.first; l < worker.layers.last; ++l) {
        const bool resident =
            l >= worker.resident_experts.first && l < worker.resident_experts.last;
        layers += resident || !HasExperts(l) ? 1 : 0;
      }
    }
    return input_.weight_bytes / static_cast<uint64_t>(config_.num_layers) *
           static_cast<uint64_t>(layers);
  }

  // Pages and snapshots by what this host has left beside the weights.
  absl::Status FitMemory() {
    DeploymentPlan& plan = result_.plan;
    uint64_t page_bytes = 0, state_bytes = 0;
    for (const WorkerPlan& worker : plan.workers) {
      if (worker.role != WorkerRole::kStage || !InThisMemory(worker)) continue;
      for (int l = worker.layers.first; l < worker.layers.last; ++l) {
        const LayerConfig& layer = config_.layers[static_cast<size_t>(l)];
        page_bytes += kPagePositions * KvBytesPerPosition(config_, layer, plan.kv_cache);
        state_bytes += RecurrentBytes(config_, layer);
      }
    }
    plan.num_snapshots = config_.has_recurrent_state() ? kSnapshots : 0;
    const uint64_t weights = LocalWeightBytes();
    const uint64_t fixed = weights + kReserveBytes +
                           state_bytes * static_cast<uint64_t>(plan.num_slots + plan.num_snapshots);
    const int one_context = PagesFor(plan.context_length);
    const int wanted = one_context + (plan.num_slots - 1) *
                                         PagesFor(std::min(plan.context_length, kPositionsPerSlot));
    const uint64_t left = input_.memory_bytes > fixed ? input_.memory_bytes - fixed : 0;
    plan.num_pages = wanted;
    if (page_bytes > 0 && left / page_bytes < static_cast<uint64_t>(wanted)) {
      plan.num_pages = static_cast<int>(left / page_bytes);
    }
    if (plan.num_pages < one_context) {
      const uint64_t needed = fixed + page_bytes * static_cast<uint64_t>(one_context);
      return absl::ResourceExhaustedError(absl::StrFormat(
          "model \"%s\" with a context of %d needs %.1f GiB of memory here (%.1f of them weights); "
          "%.1f are left",
          model_.name, plan.context_length, Gib(needed), Gib(weights), Gib(input_.memory_bytes)));
    }
    result_.memory_bytes = fixed + page_bytes * static_cast<uint64_t>(plan.num_pages);
    return absl::OkStatus();
  }

  static double Gib(uint64_t bytes) {
    return static_cast<double>(bytes) / static_cast<double>(uint64_t{1} << 30);
  }

  // Names of the workers on a device; "*" stands for all.
  std::vector<std::string> NamesOn(const std::string& device) const {
    if (device == "*") return {"*"};
    std::vector<std::string> names;
    for (size_t i = 0; i < devices_.size(); ++i) {
      if (devices_[i] == device) names.push_back(result_.plan.workers[i].name);
    }
    return names;
  }

  void PinLinks() {
    for (const LinkEntry& link : input_.topology->links) {
      for (const std::string& from : NamesOn(link.between[0])) {
        for (const std::string& to : NamesOn(link.between[1])) {
          if (from == to && from != "*") continue;
          result_.plan.links.push_back({.from = from, .to = to, .transport = link.transport});
        }
      }
    }
  }

  const EvenPlanInput& input_;
  const ModelEntry& model_;
  const ModelConfig& config_;
  EvenPlan result_;
  bool has_experts_worker_ = false;
  std::vector<std::string> devices_;         // of result_.plan.workers
  std::vector<const WorkerEntry*> experts_;  // experts workers, in order
};

}  // namespace

absl::StatusOr<EvenPlan> PlanEvenly(const EvenPlanInput& input) { return Planner(input).Run(); }

}  // namespace packtrain

#include "coordinator/placement/candidates.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/base/status_macros.h"
#include "coordinator/placement/device_rates.h"
#include "coordinator/placement/rates.h"

namespace packtrain {
namespace {

size_t S(int value) { return static_cast<size_t>(value); }

class Builder {
 public:
  Builder(const Taken& taken, Problem* problem)
      : rig_(*problem->rig),
        wish_(*problem->wish),
        taken_(taken),
        model_(*problem->model),
        p_(problem) {}

  absl::Status Build() {
    if (wish_.workers.empty()) {
      PlanWorkers();
    } else {
      RETURN_IF_ERROR(ListedWorkers());
    }
    return Force();
  }

 private:
  absl::Status Wrong(const std::string& text) const { return WishError(wish_, text); }

  bool HasExperts() const { return p_->first_moe < p_->num_layers; }

  uint64_t TakenOf(size_t h, size_t g) const { return taken_.gpu.empty() ? 0 : taken_.gpu[h][g]; }

  void AddGpu(size_t h, size_t g) {
    const HostFacts& host = rig_.hosts[h];
    const GpuFacts& gpu = host.gpus[g];
    StageCandidate s;
    s.name = {host.name, absl::StrCat("cuda:", gpu.index)};
    s.host = static_cast<int>(h);
    s.gpu = static_cast<int>(g);
    s.kind = DeviceKind::kCuda;
    const uint64_t capacity = GpuCapacity(gpu), taken = TakenOf(h, g);
    s.capacity = capacity > taken ? capacity - taken : 0;
    s.read = (gpu.read_gb_per_s > 0 ? gpu.read_gb_per_s : 500) * 1e9;
    const double flops = (gpu.bf16_tflops > 0 ? gpu.bf16_tflops : 50) * 1e12;
    s.weights = {
        .rates = gpu.weight_rates, .read = s.read * kGpuReadShare, .flops = flops * kGemmShare};
    s.experts = {.gate_up = GpuExpertTimes(gpu, s.read, flops, false),
                 .down = GpuExpertTimes(gpu, s.read, flops, true),
                 .tiles_at_once = gpu.multiprocessors * kTilesAtOnce};
    s.attention_flops = flops * kAttentionShare;
    s.attention_rows = gpu.multiprocessors * kAttentionRows;
    s.kernel_seconds = (gpu.product_us > 0 ? gpu.product_us : kProductUs) * 1e-6;
    s.link = LinkOf(gpu);
    s.exchange_seconds = kMailboxSeconds + 2 * gpu.flag_round_trip_us * 1e-6;
    s.narrow = IsNarrow(gpu);
    s.threads = 1;
    p_->stages.push_back(std::move(s));
  }

  void AddCpuStage(size_t h, int threads) {
    const HostFacts& host = rig_.hosts[h];
    StageCandidate s;
    s.name = {host.name, "cpu"};
    s.host = static_cast<int>(h);
    s.kind = DeviceKind::kCpu;
    s.capacity = p_->hosts[h].capacity;
    s.read = DramOf(host, threads);
    s.weights = CpuTimes(host, threads, s.read * kCpuStageReadShare);
    s.experts = {.gate_up = CpuExpertTimes(host, threads), .down = CpuExpertTimes(host, threads)};
    s.experts_seconds = ExpertsLayerSeconds(host);
    s.attention_flops = s.weights.flops;
    s.link = p_->hosts[h].dram_read;
    s.exchange_seconds = kShmSeconds;
    s.required = true;
    s.threads = threads;
    p_->stages.push_back(std::move(s));
  }

  // `gpus` stages on the host's GPUs wait for them, each in a thread that spins: where there is no
  // CPU left for these, nobody may spin and every layer waits for threads to wake up.
  void AddExperts(size_t h, int wished, int workers, int gpus) {
    const HostFacts& host = rig_.hosts[h];
    int threads = ThreadsOf(host, wished, workers);
    if (wished == 0 && host.cpu.threads > 0) {
      threads = std::clamp((host.cpu.threads - gpus) / std::max(workers, 1), 1, threads);
    }
    ExpertsCandidate e;
    e.name = {host.name, "cpu"};
    e.host = static_cast<int>(h);
    e.experts = {.gate_up = CpuExpertTimes(host, threads), .down = CpuExpertTimes(host, threads)};
    e.layer_seconds = ExpertsLayerSeconds(host);
    e.threads = threads;
    p_->experts.push_back(std::move(e));
  }

  int StagesOn(size_t h) const {
    return static_cast<int>(std::count_if(p_->stages.begin(), p_->stages.end(),
                                          [&](const StageCandidate& s) { return S(s.host) == h; }));
  }

  void PlanWorkers() {
    for (size_t h = 0; h < rig_.hosts.size(); ++h) {
      for (size_t g = 0; g < rig_.hosts[h].gpus.size(); ++g) {
        // A card that another deployment has is left to it.
        if (rig_.hosts[h].gpus[g].index >= 0 && TakenOf(h, g) == 0) AddGpu(h, g);
      }
    }
    if (!p_->stages.empty()) {
      for (size_t h = 0; HasExperts() && h < rig_.hosts.size(); ++h) {
        AddExperts(h, wish_.threads, 1, StagesOn(h));
      }
      return;
    }
    AddCpuStage(0, ThreadsOf(rig_.hosts[0], wish_.threads, 1));
  }

  absl::Status ListedWorkers() {
    for (size_t i = 0; i < wish_.workers.size(); ++i) {
      const WorkerWish& w = wish_.workers[i];
      const auto host = std::find_if(rig_.hosts.begin(), rig_.hosts.end(),
                                     [&](const HostFacts& f) { return f.name == w.device.host; });
      if (host == rig_.hosts.end()) {
        return Wrong(absl::StrCat("no host is called '", w.device.host, "'"));
      }
      const size_t h = static_cast<size_t>(host - rig_.hosts.begin());
      const size_t stages = p_->stages.size();
      RETURN_IF_ERROR(w.device.is_cpu() ? ListedCpu(w, h) : ListedGpu(w, h));
      (p_->stages.size() > stages ? p_->stages.back().wish : p_->experts.back().wish) =
          static_cast<int>(i);
    }
    if (p_->stages.empty()) {
      return Wrong("no worker is a stage: list a GPU, or a CPU with 'role: stage'");
    }
    OrderStages();
    for (StageCandidate& s : p_->stages) {
      for (const ExpertsCandidate& e : p_->experts) {
        s.experts_elsewhere |= s.kind == DeviceKind::kCpu && e.host == s.host;
      }
    }
    const bool cuda =
        std::any_of(p_->stages.begin(), p_->stages.end(),
                    [](const StageCandidate& s) { return s.kind == DeviceKind::kCuda; });
    // GPUs without a listed CPU: its RAM is used all the same where they cannot hold everything.
    if (cuda && p_->experts.empty() && HasExperts()) {
      for (size_t h = 0; h < rig_.hosts.size(); ++h) {
        if (const int stages = StagesOn(h); stages > 0) AddExperts(h, wish_.threads, 1, stages);
      }
    }
    return CheckExpertsHaveOwners();
  }

  // Without an experts worker the stages hold all experts; their pins must allow it.
  absl::Status CheckExpertsHaveOwners() const {
    if (!p_->experts.empty()) return absl::OkStatus();
    const auto holds = [](const StageCandidate& s, int layer) {
      const std::optional<LayerRange>& range = s.resident ? s.resident : s.layers;
      return !range || (range->first <= layer && layer < range->last);
    };
    LayerRange homeless;
    for (int l = p_->first_moe; l < p_->num_layers; ++l) {
      const bool held = std::any_of(p_->stages.begin(), p_->stages.end(),
                                    [&](const StageCandidate& s) { return holds(s, l); });
      if (held || model_.weights.layers[S(l)].experts == 0) continue;
      if (homeless.empty()) homeless.first = l;
      homeless.last = l + 1;
    }
    if (homeless.empty()) return absl::OkStatus();
    return Wrong(
        absl::StrFormat("the routed experts of layers %d-%d belong to nobody: list an "
                        "experts worker, or let resident_experts include them",
                        homeless.first, homeless.last - 1));
  }

  // The search takes stages in their order. Pinned ones stand in the order of their layers; the
  // others, as listed, fill what is left between them: one each, further ones where a stage has
  // most layers to carry.
  void OrderStages() {
    std::vector<StageCandidate> pinned, others;
    for (StageCandidate& s : p_->stages) (s.layers ? pinned : others).push_back(std::move(s));
    std::stable_sort(pinned.begin(), pinned.end(),
                     [](const StageCandidate& a, const StageCandidate& b) {
                       return a.layers->first < b.layers->first;
                     });
    std::vector<int> layers(pinned.size() + 1), stages(pinned.size() + 1, 0);  // in front of each
    int next = 0;
    for (size_t i = 0; i < pinned.size(); ++i) {
      layers[i] = pinned[i].layers->first - next;
      next = pinned[i].layers->last;
    }
    layers.back() = p_->num_layers - next;
    for (size_t left = others.size(); left > 0; --left) {
      size_t widest = 0;
      for (size_t i = 1; i < layers.size(); ++i) {
        if (layers[i] * (stages[widest] + 1) > layers[widest] * (stages[i] + 1)) widest = i;
      }
      ++stages[widest];
    }
    p_->stages.clear();
    auto other = others.begin();
    for (size_t i = 0; i < layers.size(); ++i) {
      for (int k = 0; k < stages[i]; ++k) p_->stages.push_back(std::move(*other++));
      if (i < pinned.size()) p_->stages.push_back(std::move(pinned[i]));
    }
  }

  int CpuWorkersOn(const std::string& host) const {
    return static_cast<int>(std::count_if(
        wish_.workers.begin(), wish_.workers.end(),
        [&](const WorkerWish& w) { return w.device.is_cpu() && w.device.host == host; }));
  }

  absl::Status CheckRange(const DeviceName& device, const LayerRange& range) const {
    const int layers = model_.config.num_layers;
    if (range.first < 0 || range.last > layers || range.last < range.first) {
      return Wrong(absl::StrFormat("%s: layers %d-%d are not among the model's 0-%d", device.text(),
                                   range.first, range.last - 1, layers - 1));
    }
    return absl::OkStatus();
  }

  absl::Status ListedCpu(const WorkerWish& w, size_t h) {
    const int threads = ThreadsOf(rig_.hosts[h], w.threads, CpuWorkersOn(w.device.host));
    const bool any_gpu = std::any_of(wish_.workers.begin(), wish_.workers.end(),
                                     [](const WorkerWish& o) { return !o.device.is_cpu(); });
    const bool any_stage =
        std::any_of(wish_.workers.begin(), wish_.workers.end(),
                    [](const WorkerWish& o) { return o.role == WishedRole::kStage; });
    const bool stage =
        w.role == WishedRole::kStage || (w.role == WishedRole::kPlanned && !any_gpu && !any_stage);
    if (stage) {
      AddCpuStage(h, threads);
      return Pins(w);
    }
    if (w.layers || w.resident_experts) {
      return Wrong(w.device.text() + ": an experts worker has no layers of its own");
    }
    if (!HasExperts()) return Wrong(w.device.text() + ": the model has no routed experts");
    for (const LayerRange& range : w.experts) RETURN_IF_ERROR(CheckRange(w.device, range));
    const int gpus = static_cast<int>(std::count_if(
        wish_.workers.begin(), wish_.workers.end(),
        [&](const WorkerWish& o) { return !o.device.is_cpu() && o.device.host == w.device.host; }));
    AddExperts(h, w.threads, CpuWorkersOn(w.device.host), gpus);
    p_->experts.back().pinned = w.experts;
    return absl::OkStatus();
  }

  absl::Status ListedGpu(const WorkerWish& w, size_t h) {
    if (w.role == WishedRole::kExperts) {
      return Wrong(w.device.text() + ": an experts worker runs on a CPU");
    }
    const std::vector<GpuFacts>& gpus = rig_.hosts[h].gpus;
    for (size_t g = 0; g < gpus.size(); ++g) {
      if (w.device.device == absl::StrCat("cuda:", gpus[g].index)) {
        AddGpu(h, g);
        StageCandidate& s = p_->stages.back();
        s.required = true;
        // Workers of one GPU share what is left of it in the order in which they are listed.
        for (const StageCandidate& other : p_->stages) {
          if (&other == &s || other.name != s.name) continue;
          s.capacity -= std::min(s.capacity, other.capacity);
        }
        if (w.memory > 0) s.capacity = std::min(s.capacity, w.memory);
        return Pins(w);
      }
    }
    return Wrong(absl::StrFormat("%s: that host has %d GPUs", w.device.text(), gpus.size()));
  }

  absl::Status Pins(const WorkerWish& w) {
    StageCandidate& s = p_->stages.back();
    for (const auto& range : {w.layers, w.resident_experts}) {
      if (range) RETURN_IF_ERROR(CheckRange(w.device, *range));
    }
    if (!w.experts.empty()) {
      return Wrong(w.device.text() + ": a stage names its experts by resident_experts");
    }
    s.layers = w.layers;
    if (s.layers && s.layers->empty()) return Wrong(w.device.text() + ": layers are empty");
    if (s.layers && s.layers->last == model_.config.num_layers) s.layers->last = p_->num_layers;
    s.resident = w.resident_experts;
    return absl::OkStatus();
  }

  absl::Status Force() {
    p_->forced.assign(S(p_->num_layers), -1);
    for (size_t e = 0; e < p_->experts.size(); ++e) {
      for (const LayerRange& range : p_->experts[e].pinned) {
        for (int l = range.first; l < range.last; ++l) {
          if (model_.weights.layers[S(l)].experts == 0) {
            return Wrong(absl::StrFormat("%s: layer %d has no routed experts",
                                         p_->experts[e].name.text(), l));
          }
          if (p_->forced[S(l)] >= 0) {
            return Wrong(absl::StrFormat("experts of layer %d have two owners", l));
          }
          p_->forced[S(l)] = static_cast<int>(e);
        }
      }
    }
    return absl::OkStatus();
  }

  const Rig& rig_;
  const DeploymentWish& wish_;
  const Taken& taken_;
  const ModelFacts& model_;
  Problem* const p_;
};

}  // namespace

absl::Status AddCandidates(const Taken& taken, Problem* problem) {
  return Builder(taken, problem).Build();
}

absl::Status WishError(const DeploymentWish& wish, const std::string& text) {
  return absl::InvalidArgumentError(absl::StrCat(wish.place, "model \"", wish.name, "\": ", text));
}

}  // namespace packtrain

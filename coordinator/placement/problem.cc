#include "coordinator/placement/problem.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/base/check.h"
#include "common/base/status_macros.h"
#include "common/model/step.h"
#include "coordinator/placement/layer_times.h"
#include "coordinator/placement/rates.h"

namespace packtrain {
namespace {

// The share of a device that plans may use. The rest is for what a plan cannot foresee: other
// programs on the card, fragmentation.
constexpr double kGpuShare = 0.95;
// Loading takes up to 2 GiB more than its weights; the coordinator the rest. 1 %: page tables are
// 0.2 % of what a process maps in 4 KiB pages, and experts are mapped by every stage that streams.
constexpr uint64_t kHostReserve = uint64_t{3} << 30;
constexpr uint64_t kHostShareDivisor = 100;

constexpr uint64_t kUnknownCapacity = uint64_t{1} << 50;

constexpr int kDefaultContext = 32768;
// A running sequence's own, and one of a prefix that others may share.
constexpr int kSnapshotsPerSlot = 2;

size_t S(int value) { return static_cast<size_t>(value); }

double LinkOf(const GpuFacts& gpu) {
  if (gpu.to_device_gb_per_s > 0) return gpu.to_device_gb_per_s * 1e9;
  if (gpu.link_lanes > 0 && gpu.link_gt_per_s > 0) {
    return gpu.link_lanes * gpu.link_gt_per_s * 1e9 / 8 * 0.82;  // encoding and packet overhead
  }
  return 12e9;
}

int ThreadsOf(const HostFacts& host, int wished, int workers) {
  const int cores = std::max(host.cpu.cores, 1);
  return wished > 0 ? wished : std::max(cores / std::max(workers, 1), 1);
}

double DramOf(const HostFacts& host, int threads) {
  if (const double measured = host.DramRead(threads); measured > 0) return measured * 1e9;
  const double all = host.DramRead(0) > 0 ? host.DramRead(0) : 20;
  return all * 1e9 * std::min(1.0, threads / static_cast<double>(std::max(host.cpu.cores, 1)));
}

// Of `threads` of the host's cores. Kernels that were measured were so on all of them. `read` is
// for types that were not.
WeightTimes CpuTimes(const HostFacts& host, int threads, double read) {
  const double cores = std::max(host.cpu.cores, 1);
  return {.rates = host.weight_rates,
          .scale = std::min(threads / cores, 1.0),
          .read = read,
          .flops = threads * kCpuCoreFlops};
}

// The same for the experts that a token picks.
WeightTimes CpuExpertTimes(const HostFacts& host, int threads) {
  WeightTimes times =
      CpuTimes(host, threads,
               host.experts_read_gb_per_s > 0 ? host.experts_read_gb_per_s * 1e9
                                              : DramOf(host, threads) * kExpertsReadShare);
  for (WeightRate& rate : times.rates) {
    if (rate.experts_gb_per_s > 0) rate.read_gb_per_s = rate.experts_gb_per_s;
  }
  return times;
}

double ExpertsLayerSeconds(const HostFacts& host) {
  return (host.experts_layer_us > 0 ? host.experts_layer_us : kExpertsLayerUs) * 1e-6;
}

// Duties as an index: embeds, has_head, receives, sends, asks_experts (and streams them on a GPU).
constexpr size_t kDutyBits = 32;

StageDuties DutiesOfBits(DeviceKind kind, size_t bits) {
  const bool asks = (bits & 16) != 0;
  return {.device = kind,
          .embeds = (bits & 1) != 0,
          .has_head = (bits & 2) != 0,
          .receives = (bits & 4) != 0,
          .sends = (bits & 8) != 0,
          .asks_experts = asks,
          .streams_experts = asks && kind == DeviceKind::kCuda};
}

size_t BitsOf(const Problem& p, const StageChoice& choice) {
  const bool first = choice.layers.first == 0, last = choice.layers.last == p.num_layers;
  return (first ? 1u : 4u) | (last ? 2u : 8u) | (choice.parts.empty() ? 0u : 16u);
}

class Builder {
 public:
  Builder(const Rig& rig, const DeploymentWish& wish, const Taken& taken)
      : rig_(rig), wish_(wish), taken_(taken), model_(*wish.model) {}

  absl::StatusOr<Problem> Build(int max_tokens) {
    p_.wish = &wish_;
    p_.model = &model_;
    p_.rig = &rig_;
    RETURN_IF_ERROR(Shape(max_tokens));
    for (size_t h = 0; h < rig_.hosts.size(); ++h) {
      const HostFacts& host = rig_.hosts[h];
      const uint64_t capacity = HostCapacity(host);
      const uint64_t taken = taken_.host.empty() ? 0 : taken_.host[h];
      p_.hosts.push_back({capacity > taken ? capacity - taken : 0, DramOf(host, host.cpu.cores)});
    }
    if (wish_.workers.empty()) {
      PlanWorkers();
    } else {
      RETURN_IF_ERROR(ListedWorkers());
    }
    RETURN_IF_ERROR(Force());
    Sums();
    return std::move(p_);
  }

 private:
  absl::Status Wrong(const std::string& text) const {
    return absl::InvalidArgumentError(
        absl::StrCat(wish_.place, "model \"", wish_.name, "\": ", text));
  }

  absl::Status Shape(int max_tokens) {
    const int trained = model_.config.context_length;
    p_.context = wish_.context > 0 ? wish_.context : std::min(trained, kDefaultContext);
    if (p_.context > trained) {
      return Wrong(absl::StrFormat("context %d; allowed: at most %d, which it was trained with",
                                   p_.context, trained));
    }
    p_.shape.kv_cache = wish_.kv_cache;
    p_.shape.num_slots = wish_.num_slots;
    p_.shape.num_snapshots =
        model_.config.has_recurrent_state() ? kSnapshotsPerSlot * wish_.num_slots : 0;
    p_.shape.max_tokens = max_tokens;
    // One sequence of full length, and a last page begun by each of the others.
    p_.shape.num_pages = (p_.context + kPagePositions - 1) / kPagePositions + wish_.num_slots - 1;
    const int trunk = model_.config.num_layers;
    const int stored = static_cast<int>(model_.weights.layers.size());
    if (wish_.mtp && stored == trunk) {
      return Wrong("mtp is on, but the file has no multi-token prediction layer");
    }
    p_.num_layers = wish_.mtp ? stored : trunk;
    p_.first_moe = p_.num_layers;
    for (int l = p_.num_layers - 1; l >= 0; --l) {
      if (model_.weights.layers[S(l)].experts > 0) p_.first_moe = l;
    }
    return absl::OkStatus();
  }

  uint64_t TakenOf(size_t h, size_t g) const { return taken_.gpu.empty() ? 0 : taken_.gpu[h][g]; }

  bool HasExperts() const { return p_.first_moe < p_.num_layers; }

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
    s.experts = s.weights;
    s.attention_flops = flops;
    s.kernel_seconds = kKernelCost * (gpu.kernel_us > 0 ? gpu.kernel_us : kKernelUs) * 1e-6;
    s.link = LinkOf(gpu);
    s.exchange_seconds = kMailboxSeconds + 2 * gpu.flag_round_trip_us * 1e-6;
    s.narrow = IsNarrow(gpu);
    s.threads = 1;
    p_.stages.push_back(std::move(s));
  }

  void AddCpuStage(size_t h, int threads) {
    const HostFacts& host = rig_.hosts[h];
    StageCandidate s;
    s.name = {host.name, "cpu"};
    s.host = static_cast<int>(h);
    s.kind = DeviceKind::kCpu;
    s.capacity = p_.hosts[h].capacity;
    s.read = DramOf(host, threads);
    s.weights = CpuTimes(host, threads, s.read * kCpuStageReadShare);
    s.experts = CpuExpertTimes(host, threads);
    s.experts_seconds = ExpertsLayerSeconds(host);
    s.attention_flops = s.weights.flops;
    s.link = p_.hosts[h].dram_read;
    s.exchange_seconds = kShmSeconds;
    s.required = true;
    s.threads = threads;
    p_.stages.push_back(std::move(s));
  }

  void AddExperts(size_t h, int threads) {
    const HostFacts& host = rig_.hosts[h];
    ExpertsCandidate e;
    e.name = {host.name, "cpu"};
    e.host = static_cast<int>(h);
    e.weights = CpuExpertTimes(host, threads);
    e.layer_seconds = ExpertsLayerSeconds(host);
    e.threads = threads;
    p_.experts.push_back(std::move(e));
  }

  void PlanWorkers() {
    for (size_t h = 0; h < rig_.hosts.size(); ++h) {
      for (size_t g = 0; g < rig_.hosts[h].gpus.size(); ++g) {
        // A card that another deployment has is left to it.
        if (rig_.hosts[h].gpus[g].index >= 0 && TakenOf(h, g) == 0) AddGpu(h, g);
      }
    }
    if (!p_.stages.empty()) {
      for (size_t h = 0; HasExperts() && h < rig_.hosts.size(); ++h) {
        AddExperts(h, ThreadsOf(rig_.hosts[h], wish_.threads, 1));
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
      const size_t stages = p_.stages.size();
      RETURN_IF_ERROR(w.device.is_cpu() ? ListedCpu(w, h) : ListedGpu(w, h));
      (p_.stages.size() > stages ? p_.stages.back().wish : p_.experts.back().wish) =
          static_cast<int>(i);
    }
    if (p_.stages.empty()) {
      return Wrong("no worker is a stage: list a GPU, or a CPU with 'role: stage'");
    }
    OrderStages();
    for (StageCandidate& s : p_.stages) {
      for (const ExpertsCandidate& e : p_.experts) {
        s.experts_elsewhere |= s.kind == DeviceKind::kCpu && e.host == s.host;
      }
    }
    const bool cuda = std::any_of(p_.stages.begin(), p_.stages.end(), [](const StageCandidate& s) {
      return s.kind == DeviceKind::kCuda;
    });
    // GPUs without a listed CPU: its RAM is used all the same where they cannot hold everything.
    if (cuda && p_.experts.empty() && HasExperts()) {
      for (size_t h = 0; h < rig_.hosts.size(); ++h) {
        const bool used = std::any_of(p_.stages.begin(), p_.stages.end(),
                                      [&](const StageCandidate& s) { return S(s.host) == h; });
        if (used) AddExperts(h, ThreadsOf(rig_.hosts[h], wish_.threads, 1));
      }
    }
    return CheckExpertsHaveOwners();
  }

  // Without an experts worker the stages hold all experts; their pins must allow it.
  absl::Status CheckExpertsHaveOwners() const {
    if (!p_.experts.empty()) return absl::OkStatus();
    const auto holds = [](const StageCandidate& s, int layer) {
      const std::optional<LayerRange>& range = s.resident ? s.resident : s.layers;
      return !range || (range->first <= layer && layer < range->last);
    };
    LayerRange homeless;
    for (int l = p_.first_moe; l < p_.num_layers; ++l) {
      const bool held = std::any_of(p_.stages.begin(), p_.stages.end(),
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
    for (StageCandidate& s : p_.stages) (s.layers ? pinned : others).push_back(std::move(s));
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
    layers.back() = p_.num_layers - next;
    for (size_t left = others.size(); left > 0; --left) {
      size_t widest = 0;
      for (size_t i = 1; i < layers.size(); ++i) {
        if (layers[i] * (stages[widest] + 1) > layers[widest] * (stages[i] + 1)) widest = i;
      }
      ++stages[widest];
    }
    p_.stages.clear();
    auto other = others.begin();
    for (size_t i = 0; i < layers.size(); ++i) {
      for (int k = 0; k < stages[i]; ++k) p_.stages.push_back(std::move(*other++));
      if (i < pinned.size()) p_.stages.push_back(std::move(pinned[i]));
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
    AddExperts(h, threads);
    p_.experts.back().pinned = w.experts;
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
        StageCandidate& s = p_.stages.back();
        s.required = true;
        // Workers of one GPU share what is left of it in the order in which they are listed.
        for (const StageCandidate& other : p_.stages) {
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
    StageCandidate& s = p_.stages.back();
    for (const auto& range : {w.layers, w.resident_experts}) {
      if (range) RETURN_IF_ERROR(CheckRange(w.device, *range));
    }
    if (!w.experts.empty()) {
      return Wrong(w.device.text() + ": a stage names its experts by resident_experts");
    }
    s.layers = w.layers;
    if (s.layers && s.layers->empty()) return Wrong(w.device.text() + ": layers are empty");
    if (s.layers && s.layers->last == model_.config.num_layers) s.layers->last = p_.num_layers;
    s.resident = w.resident_experts;
    return absl::OkStatus();
  }

  absl::Status Force() {
    p_.forced.assign(S(p_.num_layers), -1);
    for (size_t e = 0; e < p_.experts.size(); ++e) {
      for (const LayerRange& range : p_.experts[e].pinned) {
        for (int l = range.first; l < range.last; ++l) {
          if (model_.weights.layers[S(l)].experts == 0) {
            return Wrong(absl::StrFormat("%s: layer %d has no routed experts",
                                         p_.experts[e].name.text(), l));
          }
          if (p_.forced[S(l)] >= 0) {
            return Wrong(absl::StrFormat("experts of layer %d have two owners", l));
          }
          p_.forced[S(l)] = static_cast<int>(e);
        }
      }
    }
    return absl::OkStatus();
  }

  void Sums() {
    const size_t n = S(p_.num_layers);
    std::vector<double> cpu(n), cuda(n), experts(n);
    for (size_t l = 0; l < n; ++l) {
      const int layer = static_cast<int>(l);
      cpu[l] = static_cast<double>(LayerBill(model_, p_.shape, DeviceKind::kCpu, layer).total());
      cuda[l] = static_cast<double>(LayerBill(model_, p_.shape, DeviceKind::kCuda, layer).total());
      experts[l] = static_cast<double>(model_.weights.layers[l].experts);
    }
    for (const DeviceKind kind : {DeviceKind::kCpu, DeviceKind::kCuda}) {
      for (size_t bits = 0; bits < kDutyBits; ++bits) {
        const StageDuties duties = DutiesOfBits(kind, bits);
        const size_t k = static_cast<size_t>(kind);
        p_.base_device[k].push_back(StageBaseBill(model_, p_.shape, duties).total());
        p_.base_host[k].push_back(StageHostBill(model_, p_.shape, duties).total());
      }
    }
    p_.fixed_bytes = {RunningSum(cpu), RunningSum(cuda)};
    p_.expert_bytes = {RunningSum(experts)};
    for (StageCandidate& s : p_.stages) {
      s.head_seconds =
          s.weights.Read(static_cast<double>(model_.weights.head), model_.weights.head_types);
      DecodeSums(s);
      PrefillSums(s);
    }
    for (const ExpertsCandidate& e : p_.experts) {
      p_.worker_prefill.push_back(SumOf(
          [&](int l) { return ExpertsPrefillSeconds(p_, e.weights, l, p_.shape.max_tokens); }));
    }
  }

  template <typename Seconds>
  RunningSum SumOf(Seconds seconds) const {
    std::vector<double> values(S(p_.num_layers));
    for (size_t l = 0; l < values.size(); ++l) values[l] = seconds(static_cast<int>(l));
    return RunningSum(values);
  }

  void DecodeSums(const StageCandidate& s) {
    const int depth = std::min(kDepth, p_.context);
    p_.own_seconds.push_back(SumOf([&](int l) { return OwnDecodeSeconds(p_, s, l, depth); }));
    p_.resident_seconds.push_back(SumOf([&](int l) { return ResidentDecodeSeconds(p_, s, l); }));
    p_.remote_seconds.emplace_back();
    for (const ExpertsCandidate& e : p_.experts) {
      p_.remote_seconds.back().push_back(
          SumOf([&](int l) { return RemoteDecodeSeconds(p_, s, e, l); }));
    }
  }

  void PrefillSums(const StageCandidate& s) {
    const int rows = p_.shape.max_tokens;
    const PromptChunk chunk = {.rows = rows, .depth = std::max(kPrompt - rows, 0) / 2};
    p_.own_prefill.push_back(SumOf([&](int l) { return OwnPrefillSeconds(p_, s, l, chunk); }));
    p_.expert_prefill.push_back(
        SumOf([&](int l) { return ExpertsPrefillSeconds(p_, s.experts, l, rows); }));
  }

  const Rig& rig_;
  const DeploymentWish& wish_;
  const Taken& taken_;
  const ModelFacts& model_;
  Problem p_;
};

}  // namespace

uint64_t HostCapacity(const HostFacts& host) {
  if (host.memory.total_bytes == 0 && host.memory.available_bytes == 0) return kUnknownCapacity;
  const uint64_t usable = host.memory.usable_bytes();
  const uint64_t reserve = kHostReserve + usable / kHostShareDivisor;
  return usable > reserve ? usable - reserve : 0;
}

uint64_t GpuCapacity(const GpuFacts& gpu) {
  if (gpu.memory_bytes == 0) return kUnknownCapacity;
  const auto share = static_cast<uint64_t>(static_cast<double>(gpu.memory_bytes) * kGpuShare);
  return gpu.free_bytes > 0 ? std::min(share, gpu.free_bytes) : share;
}

bool IsNarrow(const GpuFacts& gpu) { return gpu.link_lanes == 1 || LinkOf(gpu) < kNarrowLink; }

RunningSum::RunningSum(const std::vector<double>& values) : sums_(values.size() + 1) {
  for (size_t i = 0; i < values.size(); ++i) sums_[i + 1] = sums_[i] + values[i];
}

absl::StatusOr<Problem> BuildProblem(const Rig& rig, const DeploymentWish& wish, const Taken& taken,
                                     int max_tokens) {
  CHECK(wish.model != nullptr && !rig.hosts.empty());
  return Builder(rig, wish, taken).Build(max_tokens);
}

StageDuties DutiesOf(const Problem& problem, const StageChoice& choice) {
  return DutiesOfBits(problem.stages[S(choice.candidate)].kind, BitsOf(problem, choice));
}

double ExpertsBytesOf(const Problem& p, const LayerRange& range) {
  return range.empty() ? 0 : p.expert_bytes[0].Of(range.first, range.last);
}

uint64_t DeviceNeedOf(const Problem& problem, const StageChoice& choice) {
  const size_t kind = static_cast<size_t>(problem.stages[S(choice.candidate)].kind);
  return problem.base_device[kind][BitsOf(problem, choice)] +
         static_cast<uint64_t>(
             problem.fixed_bytes[kind].Of(choice.layers.first, choice.layers.last)) +
         static_cast<uint64_t>(ExpertsBytesOf(problem, choice.resident));
}

StageNeed NeedOf(const Problem& problem, const StageChoice& choice) {
  const StageCandidate& s = problem.stages[S(choice.candidate)];
  StageNeed need;
  need.host.assign(problem.hosts.size(), 0);
  need.device = DeviceNeedOf(problem, choice);
  need.host[S(s.host)] +=
      s.kind == DeviceKind::kCpu
          ? need.device
          : problem.base_host[static_cast<size_t>(s.kind)][BitsOf(problem, choice)];
  for (const ExpertsPart& part : choice.parts) {
    need.host[S(problem.experts[S(part.worker)].host)] +=
        static_cast<uint64_t>(ExpertsBytesOf(problem, part.layers));
  }
  return need;
}

std::vector<uint64_t> ExpertsBaseNeed(const Problem& problem) {
  std::vector<uint64_t> need(problem.hosts.size(), 0);
  for (const ExpertsCandidate& e : problem.experts) {
    need[S(e.host)] += ExpertsBaseBill(*problem.model, problem.shape).total();
  }
  return need;
}

}  // namespace packtrain

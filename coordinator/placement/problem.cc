#include "coordinator/placement/problem.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "absl/strings/str_format.h"
#include "common/base/check.h"
#include "common/base/status_macros.h"
#include "common/model/buffers.h"
#include "common/model/step.h"
#include "coordinator/placement/candidates.h"
#include "coordinator/placement/device_rates.h"
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

// At most, of a decode step, for which a GPU never copies experts.
constexpr int kDecodeRows = 8;
constexpr int kDefaultContext = 32768;
// A running sequence's own, and one of a prefix that others may share.
constexpr int kSnapshotsPerSlot = 2;

size_t S(int value) { return static_cast<size_t>(value); }

// Duties as an index: embeds, has_head, receives, sends, asks_experts.
constexpr size_t kDutyBits = 32;

StageDuties DutiesOfBits(DeviceKind kind, size_t bits, bool nccl) {
  return {.device = kind,
          .embeds = (bits & 1) != 0,
          .has_head = (bits & 2) != 0,
          .receives = (bits & 4) != 0,
          .sends = (bits & 8) != 0,
          .asks_experts = (bits & 16) != 0,
          .nccl = nccl && kind == DeviceKind::kCuda};
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
    RETURN_IF_ERROR(AddCandidates(taken_, &p_));
    p_.nccl = OnSeveralGpus();
    p_.shape.streamed_rows = StreamedRows();
    Sums();
    return std::move(p_);
  }

 private:
  absl::Status Shape(int max_tokens) {
    const int trained = model_.config.context_length;
    p_.context = wish_.context > 0 ? wish_.context : std::min(trained, kDefaultContext);
    if (p_.context > trained) {
      return WishError(wish_,
                       absl::StrFormat("context %d; allowed: at most %d, which it was trained with",
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
      return WishError(wish_, "mtp is on, but the file has no multi-token prediction layer");
    }
    p_.num_layers = wish_.mtp ? stored : trunk;
    p_.first_moe = p_.num_layers;
    for (int l = p_.num_layers - 1; l >= 0; --l) {
      if (model_.weights.layers[S(l)].experts > 0) p_.first_moe = l;
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
        const StageDuties duties = DutiesOfBits(kind, bits, p_.nccl);
        const size_t k = static_cast<size_t>(kind);
        p_.base_device[k].push_back(StageBaseBill(model_, p_.shape, duties).total());
        p_.base_host[k].push_back(StageHostBill(model_, p_.shape, duties).total());
      }
    }
    p_.fixed_bytes = {RunningSum(cpu), RunningSum(cuda)};
    p_.expert_bytes = {RunningSum(experts)};
    p_.ring_bytes = static_cast<double>(ExpertRingBytes(model_, p_.shape));
    for (StageCandidate& s : p_.stages) {
      s.head_seconds =
          s.weights.Read(static_cast<double>(model_.weights.head), model_.weights.head_types) +
          s.kernel_seconds * (kHeadKernels + model_.config.hidden_dim / kNormValues);
      s.step_seconds = s.kernel_seconds * kStageKernels;
      if (s.kind == DeviceKind::kCuda) {
        s.head_seconds = (s.head_seconds + HeadRowsSeconds()) * kGraphGaps;
        s.step_seconds *= kGraphGaps;
      }
      DecodeSums(s);
      PrefillSums(s);
    }
    for (const ExpertsCandidate& e : p_.experts) {
      p_.worker_prefill.push_back(SumOf(
          [&](int l) { return ExpertsPrefillSeconds(p_, e.experts, l, p_.shape.max_tokens); }));
    }
  }

  bool OnSeveralGpus() const {
    const StageCandidate* gpu = nullptr;
    for (const StageCandidate& s : p_.stages) {
      if (s.kind != DeviceKind::kCuda) continue;
      if (gpu != nullptr && gpu->name != s.name) return true;
      gpu = &s;
    }
    return false;
  }

  // Short rows take longer than the long ones of which rates are measured.
  double HeadRowsSeconds() const {
    const double columns = model_.config.hidden_dim;
    return model_.config.vocab_size * kHeadRowSeconds * (1 - columns / kMeasuredColumns);
  }

  // From how many rows on it takes a host's CPU longer to compute all routed experts than its GPUs
  // to copy them, of all GPUs alike; 0: never. Narrow links are not used for that.
  int StreamedRows() const {
    double copy_seconds = 0, links = 0;  // per byte; GPUs
    for (const StageCandidate& s : p_.stages) {
      if (s.kind != DeviceKind::kCuda || s.narrow) continue;
      copy_seconds += 1 / s.link;
      ++links;
    }
    if (links == 0 || p_.experts.empty()) return 0;
    double bytes = 0;
    for (const LayerWeightBytes& w : model_.weights.layers) bytes += static_cast<double>(w.experts);
    copy_seconds *= bytes / links;
    const auto computed_sooner = [&](int rows) {
      double seconds = 0;
      for (int l = 0; l < static_cast<int>(model_.weights.layers.size()); ++l) {
        seconds += ExpertsPrefillSeconds(p_, p_.experts.front().experts, l, rows);
      }
      return seconds < copy_seconds;
    };
    int low = kDecodeRows, high = p_.shape.max_tokens;  // computed sooner; perhaps not
    if (low >= high || computed_sooner(high)) return 0;
    while (high - low > 1) {
      const int middle = (low + high) / 2;
      (computed_sooner(middle) ? low : high) = middle;
    }
    return high;
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

RunningSum::RunningSum(const std::vector<double>& values) : sums_(values.size() + 1) {
  for (size_t i = 0; i < values.size(); ++i) sums_[i + 1] = sums_[i] + values[i];
}

absl::StatusOr<Problem> BuildProblem(const Rig& rig, const DeploymentWish& wish, const Taken& taken,
                                     int max_tokens) {
  CHECK(wish.model != nullptr && !rig.hosts.empty());
  return Builder(rig, wish, taken).Build(max_tokens);
}

StageDuties DutiesOf(const Problem& problem, const StageChoice& choice) {
  return DutiesOfBits(problem.stages[S(choice.candidate)].kind, BitsOf(problem, choice),
                      problem.nccl);
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

DeploymentShape ExpertsShape(const Problem& problem, const ExpertsCandidate& experts,
                             const std::vector<int>& served) {
  DeploymentShape shape = problem.shape;
  const bool all_stream = std::all_of(served.begin(), served.end(), [&](int candidate) {
    const StageCandidate& s = problem.stages[S(candidate)];
    return s.kind == DeviceKind::kCuda && s.host == experts.host;
  });
  if (all_stream) shape.max_tokens = shape.ComputedRows();
  return shape;
}

std::vector<uint64_t> ExpertsBaseNeed(const Problem& problem) {
  std::vector<uint64_t> need(problem.hosts.size(), 0);
  std::vector<int> any(problem.stages.size());
  std::iota(any.begin(), any.end(), 0);
  for (const ExpertsCandidate& e : problem.experts) {
    need[S(e.host)] += ExpertsBaseBill(*problem.model, ExpertsShape(problem, e, any)).total();
  }
  return need;
}

}  // namespace packtrain

#include "coordinator/placement/planner.h"

#include <algorithm>
#include <map>
#include <numeric>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "common/base/check.h"
#include "common/base/status_macros.h"
#include "common/model/step.h"
#include "coordinator/placement/describe.h"
#include "coordinator/placement/device_rates.h"
#include "coordinator/placement/speed.h"

namespace packtrain {
namespace {

// Beside one full context in a host's memory there is room for this much of every other slot's: it
// has other uses.
constexpr int kPositionsPerSlot = 4096;

size_t S(int value) { return static_cast<size_t>(value); }

class Planner {
 public:
  explicit Planner(const PlanRequest& request) : request_(request), rig_(request.rig) {}

  absl::StatusOr<Placement> Plan() {
    RETURN_IF_ERROR(Check());
    placement_.rig = rig_.name;
    placement_.deployments.resize(request_.deployments.size());
    taken_.host.assign(rig_.hosts.size(), 0);
    for (const HostFacts& host : rig_.hosts) {
      taken_.gpu.emplace_back(host.gpus.size(), 0);
      placement_.devices.push_back(HostTotal(host));
      for (const GpuFacts& gpu : host.gpus) {
        if (gpu.index >= 0) placement_.devices.push_back(GpuTotal(host, gpu));
      }
    }
    solutions_.resize(request_.deployments.size());
    for (const size_t i : Order()) RETURN_IF_ERROR(PlanOne(i));
    for (size_t i = 0; i < solutions_.size(); ++i) {
      AddPages(&*solutions_[i]);
      Bill(*solutions_[i], &placement_.deployments[i]);
    }
    return std::move(placement_);
  }

 private:
  absl::Status Check() const {
    if (rig_.hosts.empty()) return absl::InvalidArgumentError("the rig has no hosts");
    if (request_.deployments.empty())
      return absl::InvalidArgumentError("there is no model to plan");
    std::set<std::string> names;
    for (const DeploymentWish& wish : request_.deployments) {
      if (!names.insert(wish.name).second) {
        return absl::InvalidArgumentError(absl::StrCat("two models are called '", wish.name, "'"));
      }
      std::set<std::string> gpus;
      for (const WorkerWish& w : wish.workers) {
        if (!w.device.is_cpu() && w.memory == 0 && !gpus.insert(w.device.text()).second) {
          return absl::InvalidArgumentError(
              absl::StrCat(wish.name, ": ", w.device.text(), " is listed twice"));
        }
      }
    }
    return absl::OkStatus();
  }

  // Listed workers first: what is planned goes around them. Then sidecars, which need one device.
  std::vector<size_t> Order() const {
    std::vector<size_t> order(request_.deployments.size());
    std::iota(order.begin(), order.end(), size_t{0});
    const auto rank = [&](size_t i) {
      const DeploymentWish& wish = request_.deployments[i];
      return !wish.workers.empty() ? 0 : wish.sidecar ? 1 : 2;
    };
    std::stable_sort(order.begin(), order.end(),
                     [&](size_t a, size_t b) { return rank(a) < rank(b); });
    return order;
  }

  static DeviceTotal HostTotal(const HostFacts& host) {
    DeviceTotal total;
    total.device = {host.name, "cpu"};
    total.memory = host.memory.total_bytes > 0 || host.memory.available_bytes > 0
                       ? host.memory.usable_bytes()
                       : 0;
    total.capacity = HostCapacity(host);
    return total;
  }

  static DeviceTotal GpuTotal(const HostFacts& host, const GpuFacts& gpu) {
    DeviceTotal total;
    total.device = {host.name, absl::StrCat("cuda:", gpu.index)};
    total.memory = gpu.memory_bytes;
    total.capacity = GpuCapacity(gpu);
    return total;
  }

  absl::Status PlanOne(size_t i) {
    const DeploymentWish& wish = request_.deployments[i];
    std::optional<Solution> solution;
    std::vector<std::string> notes;
    if (wish.sidecar && wish.workers.empty()) {
      ASSIGN_OR_RETURN(solution, OnOneCard(wish, &notes));
    }
    if (!solution) {
      ASSIGN_OR_RETURN(solution, Solve(rig_, wish, taken_));
    }
    if (!solution && wish.workers.empty() && HasGpus()) {
      const Rig without = WithoutGpus(rig_);
      ASSIGN_OR_RETURN(solution, Solve(without, wish, taken_));
      if (solution) {
        notes.push_back("no division fits the GPUs: everything is on the CPU");
        solution->problem.rig = &rig_;
      }
    }
    if (!solution) return Refusal(wish);
    DeploymentPlacement placed = DescribeSolution(*solution);
    placed.notes.insert(placed.notes.begin(), notes.begin(), notes.end());
    RETURN_IF_ERROR(AddAlternatives(wish, &placed));
    Take(UsesOf(*solution));
    solutions_[i] = std::move(solution);
    placement_.deployments[i] = std::move(placed);
    return absl::OkStatus();
  }

  bool HasGpus() const {
    return std::any_of(rig_.hosts.begin(), rig_.hosts.end(),
                       [](const HostFacts& host) { return !host.gpus.empty(); });
  }

  static Rig WithoutGpus(Rig rig) {
    for (HostFacts& host : rig.hosts) host.gpus.clear();
    return rig;
  }

  // A sidecar belongs on one card, if possible all of it: the one with the slowest link, which is
  // the least loss to a model that needs several; then the smallest; then the last.
  absl::StatusOr<std::optional<Solution>> OnOneCard(const DeploymentWish& wish,
                                                    std::vector<std::string>* notes) const {
    struct Card {
      DeviceName name;
      bool narrow;
      uint64_t memory;
      int index;
    };
    std::vector<Card> cards;
    ASSIGN_OR_RETURN(const Problem problem, BuildProblem(rig_, wish, taken_, 64));
    for (const StageCandidate& s : problem.stages) {
      if (s.kind == DeviceKind::kCuda) cards.push_back({s.name, s.narrow, s.capacity, s.gpu});
    }
    std::stable_sort(cards.begin(), cards.end(), [](const Card& a, const Card& b) {
      if (a.narrow != b.narrow) return a.narrow;
      return a.memory != b.memory ? a.memory < b.memory : a.index > b.index;
    });
    // Where no card holds all of it, its experts may be in RAM.
    for (const bool all_resident : {true, false}) {
      for (const Card& card : cards) {
        DeploymentWish pinned = wish;
        pinned.workers.resize(1);
        pinned.workers[0].device = card.name;
        if (all_resident) {
          pinned.workers[0].resident_experts = LayerRange{0, wish.model->config.num_layers};
        }
        if (all_resident && !Fits(rig_, pinned, taken_)) {
          pinned.num_slots = std::min(wish.num_slots, wish.least_slots);
        }
        if (!Fits(rig_, pinned, taken_)) {
          pinned.num_slots = wish.num_slots;
          if (!all_resident || &card != &cards.front()) continue;
          for (const Remedy& remedy : Diagnose(rig_, pinned, taken_).remedies) {
            if (remedy.without_pins || remedy.more_ram) continue;
            notes->push_back(
                absl::StrCat(card.name.text(), " would hold all of it with ", remedy.text));
          }
          continue;
        }
        ASSIGN_OR_RETURN(std::optional<Solution> solution, Solve(rig_, pinned, taken_));
        if (all_resident) notes->clear();
        if (pinned.num_slots < wish.num_slots) {
          notes->push_back(absl::StrFormat("%d slots, so that %s holds all of it", pinned.num_slots,
                                           card.name.text()));
        }
        if (solution) {
          solution->problem.wish = &wish;
          for (StageCandidate& s : solution->problem.stages) s.wish = -1;
        }
        return solution;
      }
    }
    return std::nullopt;
  }

  absl::Status Refusal(const DeploymentWish& wish) const {
    const Diagnosis diagnosis = Diagnose(rig_, wish, taken_);
    std::string text = absl::StrCat(wish.name, " does not fit: ", diagnosis.reason);
    if (diagnosis.remedies.empty()) {
      absl::StrAppend(&text, ". Nothing tried would fit: fewer positions, a smaller KV type, ",
                      "a smaller quant, more RAM.");
    } else {
      absl::StrAppend(&text, ". It would fit with: ",
                      absl::StrJoin(diagnosis.remedies, "; or ",
                                    [](std::string* out, const Remedy& r) { out->append(r.text); }),
                      ".");
    }
    return absl::ResourceExhaustedError(text);
  }

  // A card behind a slow link: how fast with it, how fast without.
  absl::Status AddAlternatives(const DeploymentWish& wish, DeploymentPlacement* placed) const {
    if (wish.sidecar) return absl::OkStatus();
    for (size_t h = 0; h < rig_.hosts.size(); ++h) {
      for (size_t g = 0; g < rig_.hosts[h].gpus.size(); ++g) {
        const GpuFacts& gpu = rig_.hosts[h].gpus[g];
        if (!IsNarrow(gpu) || gpu.index < 0) continue;
        const DeviceName name = {rig_.hosts[h].name, absl::StrCat("cuda:", gpu.index)};
        const bool used = std::any_of(placed->stages.begin(), placed->stages.end(),
                                      [&](const StagePlacement& s) { return s.device == name; });
        placed->alternatives.push_back(Alternative{
            .choice = absl::StrCat(used ? "with " : "without ", name.text(), " (as planned)"),
            .fits = true,
            .decode_tokens_per_s = placed->speed.decode_tokens_per_s,
            .prefill_tokens_per_s = placed->speed.prefill_tokens_per_s});
        RETURN_IF_ERROR(AddOther(wish, h, g, name, used, placed));
      }
    }
    return absl::OkStatus();
  }

  absl::Status AddOther(const DeploymentWish& wish, size_t h, size_t g, const DeviceName& name,
                        bool used, DeploymentPlacement* placed) const {
    DeploymentWish other = wish;
    Taken taken = taken_;
    if (used) {
      std::erase_if(other.workers, [&](const WorkerWish& w) { return w.device == name; });
      taken.gpu[h][g] = rig_.hosts[h].gpus[g].memory_bytes;
      const bool stage_left = std::any_of(
          other.workers.begin(), other.workers.end(),
          [](const WorkerWish& w) { return !w.device.is_cpu() || w.role == WishedRole::kStage; });
      if (!wish.workers.empty() && !stage_left) return absl::OkStatus();
    } else {
      taken.gpu[h][g] = 0;
      if (!wish.workers.empty()) {
        WorkerWish more;
        more.device = name;
        other.workers.push_back(more);
      }
    }
    ASSIGN_OR_RETURN(const std::optional<Solution> solution, Solve(rig_, other, taken));
    Alternative alternative;
    alternative.choice = absl::StrCat(used ? "without " : "with ", name.text());
    alternative.fits = solution.has_value();
    if (solution) {
      const SpeedPrediction speed = Predict(solution->problem, solution->stages);
      alternative.decode_tokens_per_s = speed.decode_tokens_per_s;
      alternative.prefill_tokens_per_s = speed.prefill_tokens_per_s;
    }
    placed->alternatives.push_back(std::move(alternative));
    return absl::OkStatus();
  }

  DeviceTotal& TotalOf(const DeviceName& device) {
    for (DeviceTotal& total : placement_.devices) {
      if (total.device == device) return total;
    }
    CHECK_MSG(false, device.text());
    __builtin_unreachable();
  }

  // Enters what the workers take, each with itself and all with their devices.
  void Bill(const Solution& solution, DeploymentPlacement* placed) {
    placed->shape = solution.problem.shape;
    for (DeviceUse& use : UsesOf(solution)) {
      for (size_t e = 0; e < placed->experts.size(); ++e) {
        if (use.worker == ExpertsUseName(*solution.problem.wish, e)) {
          placed->experts[e].bill = use.bill;
        }
      }
      for (size_t i = 0; i < placed->stages.size(); ++i) {
        if (use.worker == StageUseName(*solution.problem.wish, i) &&
            use.device == placed->stages[i].device) {
          placed->stages[i].bill = use.bill;
        }
      }
      std::vector<DeviceUse>& uses = TotalOf(use.device).uses;
      uses.push_back(std::move(use));
      if (uses.size() == 2 && !uses[0].device.is_cpu()) {
        placed->notes.push_back(absl::StrFormat(
            "%s and %s take turns on %s; where CUDA MPS runs (nvidia-cuda-mps-control -d) they "
            "compute side by side",
            uses[0].worker, uses[1].worker, uses[0].device.text()));
      }
    }
  }

  // The bytes that a deployment has of a device, to be counted.
  uint64_t* TakenOf(const DeviceName& device) {
    for (size_t h = 0; h < rig_.hosts.size(); ++h) {
      if (rig_.hosts[h].name != device.host) continue;
      if (device.is_cpu()) return &taken_.host[h];
      for (size_t g = 0; g < rig_.hosts[h].gpus.size(); ++g) {
        if (device.device == absl::StrCat("cuda:", rig_.hosts[h].gpus[g].index)) {
          return &taken_.gpu[h][g];
        }
      }
    }
    CHECK_MSG(false, device.text());
    __builtin_unreachable();
  }

  void Take(const std::vector<DeviceUse>& uses) {
    for (const DeviceUse& use : uses) *TakenOf(use.device) += use.bill.total();
  }

  // A plan holds one full context. Where memory is left when all are placed, the other slots get
  // pages of their own: as many as fit, in GPUs of known size up to a full context each. Buffers
  // grow with the pages too, not evenly.
  void AddPages(Solution* solution) {
    int* const pages = &solution->problem.shape.num_pages;
    const Problem& p = solution->problem;
    for (const DeviceUse& use : UsesOf(*solution)) *TakenOf(use.device) -= use.bill.total();
    int fit = *pages;
    const bool gpus = std::all_of(
        solution->stages.begin(), solution->stages.end(), [&](const StageChoice& stage) {
          const StageCandidate& s = p.stages[S(stage.candidate)];
          return s.kind == DeviceKind::kCuda && TotalOf(s.name).memory > 0;
        });
    const int others = gpus ? p.context : std::min(p.context, kPositionsPerSlot);
    int most = std::max(fit, PagesFor(p.context) + (p.shape.num_slots - 1) * PagesFor(others));
    while (fit < most) {
      *pages = fit + (most - fit + 1) / 2;
      if (FitsWhatIsLeft(*solution)) {
        fit = *pages;
      } else {
        most = *pages - 1;
      }
    }
    *pages = fit;
    Take(UsesOf(*solution));
  }

  bool FitsWhatIsLeft(const Solution& solution) {
    const std::vector<DeviceUse> uses = UsesOf(solution);
    std::map<std::string, uint64_t> needed;
    for (const DeviceUse& use : uses) needed[use.device.text()] += use.bill.total();
    for (const DeviceUse& use : uses) {
      if (*TakenOf(use.device) + needed[use.device.text()] > TotalOf(use.device).capacity) {
        return false;
      }
    }
    // A worker that shares its GPU keeps to its part of it.
    for (size_t i = 0; i < solution.stages.size(); ++i) {
      const StageCandidate& s = solution.problem.stages[S(solution.stages[i].candidate)];
      for (const DeviceUse& use : uses) {
        if (use.worker == StageUseName(*solution.problem.wish, i) && use.device == s.name &&
            use.bill.total() > s.capacity) {
          return false;
        }
      }
    }
    return true;
  }

  static int PagesFor(int positions) { return (positions + kPagePositions - 1) / kPagePositions; }

  const PlanRequest& request_;
  const Rig& rig_;
  Taken taken_;
  Placement placement_;
  std::vector<std::optional<Solution>> solutions_;  // by deployment
};

}  // namespace

uint64_t DeviceTotal::used() const {
  uint64_t sum = 0;
  for (const DeviceUse& use : uses) sum += use.bill.total();
  return sum;
}

absl::StatusOr<Placement> PlanPlacement(const PlanRequest& request) {
  return Planner(request).Plan();
}

}  // namespace packtrain

// Why a deployment does not fit, and what would: every remedy named has been tried.

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "coordinator/placement/planner.h"
#include "coordinator/placement/search.h"

namespace packtrain {
namespace {

constexpr int kContextStep = 1024;

double Gib(double bytes) { return bytes / (1 << 30); }

const char* KvName(KvCacheType type) {
  switch (type) {
    case KvCacheType::kF32:
      return "f32";
    case KvCacheType::kF16:
      return "f16";
    case KvCacheType::kQ8_0:
      return "q8_0";
    case KvCacheType::kQ4_1:
      return "q4_1";
  }
  return "";
}

// The largest of low .. high for which `fits` holds, given that it holds for low; values that are
// larger fit less.
template <typename Fits>
int Largest(int low, int high, const Fits& fits) {
  while (low < high) {
    const int middle = low + (high - low + 1) / 2;
    if (fits(middle)) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return low;
}

std::string Reason(const Problem& p) {
  const std::optional<SearchResult> least = DivisionSearch(p).FindLeastRam();
  if (least) {
    for (size_t h = 0; h < p.hosts.size(); ++h) {
      if (least->host[h] > p.hosts[h].capacity) {
        return absl::StrFormat("%s needs %.1f GiB of RAM at least, %.1f GiB can be used",
                               p.rig->hosts[h].name, Gib(static_cast<double>(least->host[h])),
                               Gib(static_cast<double>(p.hosts[h].capacity)));
      }
    }
    uint64_t need = 0, have = 0;
    for (size_t h = 0; h < p.hosts.size(); ++h) {
      need += least->host[h];
      have += p.hosts[h].capacity;
    }
    return absl::StrFormat(
        "no division of its layers suits the RAM of all hosts: it needs %.1f GiB at least of %.1f",
        Gib(static_cast<double>(need)), Gib(static_cast<double>(have)));
  }
  double need = 0, have = 0;
  for (const StageCandidate& s : p.stages) have += static_cast<double>(s.capacity);
  const size_t kind = static_cast<size_t>(p.stages.front().kind);
  need = p.fixed_bytes[kind].Of(0, p.num_layers) + static_cast<double>(p.model->weights.head);
  const bool all_experts = p.experts.empty();
  if (all_experts) need += p.expert_bytes[0].Of(0, p.num_layers);
  const std::string what = absl::StrFormat(
      "its layers%s with a KV cache of %d positions in %s and the head take %.1f GiB",
      all_experts ? "" : " without routed experts", p.context, KvName(p.shape.kv_cache), Gib(need));
  const int stages = static_cast<int>(p.stages.size());
  if (need > have) {
    return absl::StrFormat("%s, the %d stage device%s %.1f GiB", what, stages,
                           stages == 1 ? " offers" : "s offer", Gib(have));
  }
  return absl::StrFormat(
      "%s of %.1f GiB on %d stage device%s, and with buffers and runtime no division keeps to each "
      "device's memory%s",
      what, Gib(have), stages, stages == 1 ? "" : "s",
      p.wish->workers.empty() ? "" : " and to the pins");
}

class Remedies {
 public:
  Remedies(const Rig& rig, const DeploymentWish& wish, const Taken& taken)
      : rig_(rig), wish_(wish), taken_(taken) {}

  std::vector<Remedy> Find(int context) {
    TryContext(context);
    TryKv();
    TryMtp();
    TrySlots();
    TryPins();
    TryQuant();
    TryRam();
    return std::move(found_);
  }

 private:
  bool FitsWith(const DeploymentWish& wish) const { return Fits(rig_, wish, taken_); }

  void TryContext(int context) {
    DeploymentWish wish = wish_;
    const auto fits = [&](int thousands) {
      wish.context = thousands * kContextStep;
      return FitsWith(wish);
    };
    const int most = (context - 1) / kContextStep;
    if (most < 1 || !fits(1)) return;
    Remedy remedy;
    remedy.context = Largest(1, most, fits) * kContextStep;
    remedy.text = absl::StrFormat("a context of %d instead of %d", *remedy.context, context);
    found_.push_back(std::move(remedy));
  }

  void TryKv() {
    for (const KvCacheType type : {KvCacheType::kF16, KvCacheType::kQ8_0, KvCacheType::kQ4_1}) {
      if (type <= wish_.kv_cache) continue;
      DeploymentWish wish = wish_;
      wish.kv_cache = type;
      if (!FitsWith(wish)) continue;
      Remedy remedy;
      remedy.kv_cache = type;
      remedy.text =
          absl::StrFormat("kv_cache %s instead of %s", KvName(type), KvName(wish_.kv_cache));
      found_.push_back(std::move(remedy));
      return;
    }
  }

  void TryMtp() {
    if (!wish_.mtp) return;
    DeploymentWish wish = wish_;
    wish.mtp = false;
    if (!FitsWith(wish)) return;
    Remedy remedy;
    remedy.mtp = false;
    remedy.text = "mtp off";
    found_.push_back(std::move(remedy));
  }

  void TrySlots() {
    DeploymentWish wish = wish_;
    const auto fits = [&](int slots) {
      wish.num_slots = slots;
      return FitsWith(wish);
    };
    if (wish_.num_slots <= 1 || !fits(1)) return;
    Remedy remedy;
    remedy.num_slots = Largest(1, wish_.num_slots - 1, fits);
    remedy.text = absl::StrFormat("%d slots instead of %d", *remedy.num_slots, wish_.num_slots);
    found_.push_back(std::move(remedy));
  }

  void TryPins() {
    DeploymentWish wish = wish_;
    bool pinned = false;
    for (WorkerWish& w : wish.workers) {
      pinned |= w.layers || w.resident_experts || !w.experts.empty();
      w.layers.reset();
      w.resident_experts.reset();
      w.experts.clear();
    }
    if (!pinned || !FitsWith(wish)) return;
    Remedy remedy;
    remedy.without_pins = true;
    remedy.text = "the pinned layers and experts left to the planner";
    found_.push_back(std::move(remedy));
  }

  void TryQuant() {
    ModelFacts smaller = *wish_.model;
    DeploymentWish wish = wish_;
    wish.model = &smaller;
    uint64_t bytes = 0, parameters = 0;
    for (const LayerWeightBytes& l : wish_.model->weights.layers) {
      bytes += l.experts;
      parameters += l.expert_parameters;
    }
    if (bytes == 0 || parameters == 0) return;
    const auto fits = [&](int percent) {
      for (size_t l = 0; l < smaller.weights.layers.size(); ++l) {
        smaller.weights.layers[l].experts =
            wish_.model->weights.layers[l].experts * static_cast<uint64_t>(percent) / 100;
      }
      return FitsWith(wish);
    };
    const double bits = 8.0 * static_cast<double>(bytes) / static_cast<double>(parameters);
    // There is no type below 1.5 bits.
    const int least = std::max(static_cast<int>(std::ceil(150 / bits)), 1);
    if (least >= 100 || !fits(least)) return;
    const int share = Largest(least, 99, fits);
    Remedy remedy;
    remedy.experts_share = share / 100.0;
    remedy.text =
        absl::StrFormat("a quant whose routed experts take %.2f bits per weight instead of %.2f",
                        bits * share / 100, bits);
    found_.push_back(std::move(remedy));
  }

  void TryRam() {
    Rig rig = rig_;
    const auto fits = [&](int gib) {
      for (size_t h = 0; h < rig.hosts.size(); ++h) {
        MemoryFacts& memory = rig.hosts[h].memory;
        memory = rig_.hosts[h].memory;
        const uint64_t more = static_cast<uint64_t>(gib) << 30;
        memory.available_bytes += more;
        if (memory.cgroup_bytes != kUnlimited) memory.cgroup_bytes += more;
      }
      return Fits(rig, wish_, taken_);
    };
    constexpr int kMost = 2048;
    if (!fits(kMost)) return;
    // Largest() looks for the last value that fits while smaller is easier; here it is the reverse.
    const int less = Largest(0, kMost - 1, [&](int spare) { return fits(kMost - spare); });
    Remedy remedy;
    remedy.more_ram = static_cast<uint64_t>(kMost - less) << 30;
    remedy.text = absl::StrFormat("%d GiB more RAM%s", kMost - less,
                                  rig_.hosts.size() > 1 ? " in each host" : "");
    found_.push_back(std::move(remedy));
  }

  const Rig& rig_;
  const DeploymentWish& wish_;
  const Taken& taken_;
  std::vector<Remedy> found_;
};

}  // namespace

Diagnosis Diagnose(const Rig& rig, const DeploymentWish& wish, const Taken& taken) {
  Diagnosis diagnosis;
  absl::StatusOr<Problem> problem =
      BuildProblem(rig, wish, taken, wish.max_tokens > 0 ? wish.max_tokens : 64);
  if (!problem.ok()) {
    diagnosis.reason = std::string(problem.status().message());
    return diagnosis;
  }
  diagnosis.reason = Reason(*problem);
  diagnosis.remedies = Remedies(rig, wish, taken).Find(problem->context);
  return diagnosis;
}

}  // namespace packtrain

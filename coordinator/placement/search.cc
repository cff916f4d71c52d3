#include "coordinator/placement/search.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "common/base/check.h"

namespace packtrain {
namespace {

constexpr int kMostSplits = 12;
// A front this long is thinned; with one host fronts stay below a few dozen.
constexpr size_t kMostPartials = 512;

size_t S(int value) { return static_cast<size_t>(value); }

// Layers [0, cut) are placed; the last device used is known from where this is kept.
struct Partial {
  double seconds = 0;
  std::vector<uint64_t> host;
  StageChoice choice;
  const Partial* before = nullptr;
};

bool Beats(const Partial& a, const Partial& b) {
  if (a.seconds > b.seconds) return false;
  for (size_t h = 0; h < a.host.size(); ++h) {
    if (a.host[h] > b.host[h]) return false;
  }
  return true;
}

// Partial assignments none of which beats another, by rising time.
class Front {
 public:
  bool Wants(const Partial& p) const {
    for (const Partial& kept : points_) {
      if (kept.seconds > p.seconds) break;
      if (Beats(kept, p)) return false;
    }
    return true;
  }
  void Insert(Partial p) {
    if (!Wants(p)) return;
    std::erase_if(points_, [&](const Partial& kept) { return Beats(p, kept); });
    const auto at = std::upper_bound(
        points_.begin(), points_.end(), p,
        [](const Partial& a, const Partial& b) { return a.seconds < b.seconds; });
    points_.insert(at, std::move(p));
    if (points_.size() > kMostPartials) Thin();
  }
  const std::vector<Partial>& points() const { return points_; }

 private:
  // Keeps the fastest, the last (of least RAM, with one host) and every other one between.
  void Thin() {
    std::vector<Partial> kept;
    for (size_t i = 0; i < points_.size(); ++i) {
      if (i % 2 == 0 || i + 1 == points_.size()) kept.push_back(std::move(points_[i]));
    }
    points_ = std::move(kept);
  }

  std::vector<Partial> points_;
};

// All ways in which one candidate can carry layers [first, last).
class StageOptions {
 public:
  explicit StageOptions(const Problem& problem) : p_(problem) {}

  std::vector<StageChoice> Of(int candidate, LayerRange layers) const {
    const StageCandidate& s = p_.stages[S(candidate)];
    std::vector<StageChoice> options;
    const LayerRange moe = {std::max(layers.first, p_.first_moe), layers.last};
    if (s.resident) {
      const bool outside = !s.resident->empty() && (s.resident->first < layers.first ||
                                                    s.resident->last > layers.last);
      if (!outside) AddPinned(candidate, layers, moe, *s.resident, &options);
      return options;
    }
    if (moe.empty()) {
      Add({candidate, layers, {}, {}}, {}, &options);
      return options;
    }
    if (s.experts_elsewhere) {
      Add({candidate, layers, {moe.first, moe.first}, {}}, {moe}, &options);
      return options;
    }
    // More resident layers are better in time and RAM wherever this device reads faster than the
    // experts workers, so the largest number that fits is enough; else all numbers are tried.
    const bool more_is_better = MoreIsBetter(candidate);
    for (const bool at_front : {true, false}) {
      for (int resident = moe.size(); resident >= 0; --resident) {
        if (!at_front && (resident == 0 || resident == moe.size())) continue;
        const LayerRange in = at_front ? LayerRange{moe.first, moe.first + resident}
                                       : LayerRange{moe.last - resident, moe.last};
        const LayerRange out = at_front ? LayerRange{in.last, moe.last}
                                        : LayerRange{moe.first, in.first};
        if (s.narrow && !out.empty()) continue;
        if (AnyForced(in)) continue;
        const size_t before = options.size();
        Add({candidate, layers, in, {}}, {out}, &options);
        if (more_is_better && options.size() > before) break;
      }
    }
    return options;
  }

 private:
  bool AnyForced(const LayerRange& range) const {
    for (int l = range.first; l < range.last; ++l) {
      if (p_.forced[S(l)] >= 0) return true;
    }
    return false;
  }

  bool MoreIsBetter(int candidate) const {
    for (const RunningSum& remote : p_.remote_seconds[S(candidate)]) {
      for (int l = p_.first_moe; l < p_.num_layers; ++l) {
        if (p_.resident_seconds[S(candidate)].Of(l, l + 1) > remote.Of(l, l + 1)) return false;
      }
    }
    return true;
  }

  void AddPinned(int candidate, const LayerRange& layers, const LayerRange& moe,
                 const LayerRange& resident, std::vector<StageChoice>* options) const {
    if (resident.empty()) {
      Add({candidate, layers, {moe.first, moe.first}, {}}, {moe}, options);
    } else if (!AnyForced(resident)) {
      // Dense layers in the pinned range have no experts to keep.
      const LayerRange in = {std::max(resident.first, p_.first_moe), resident.last};
      Add({candidate, layers, in, {}}, {{moe.first, in.first}, {in.last, moe.last}}, options);
    }
  }

  // Adds `choice` with every way of serving the experts of the layers in `away`, if it fits its
  // device.
  void Add(StageChoice choice, const std::vector<LayerRange>& away,
           std::vector<StageChoice>* options) const {
    std::vector<int> free_layers;
    for (const LayerRange& range : away) {
      for (int l = range.first; l < range.last; ++l) {
        if (p_.forced[S(l)] < 0) free_layers.push_back(l);
      }
    }
    const std::vector<int> workers = Workers(choice.candidate);
    if (!free_layers.empty() && workers.empty()) return;
    for (const Split& split : SplitsOf(free_layers, workers)) {
      StageChoice option = choice;
      for (const LayerRange& range : away) {
        for (int l = range.first; l < range.last; ++l) {
          const int forced = p_.forced[S(l)];
          AppendPart(&option, l,
                     forced >= 0 ? forced : l < split.edge ? workers.front() : split.behind);
        }
      }
      if (DeviceNeedOf(p_, option) <= p_.stages[S(option.candidate)].capacity) {
        options->push_back(std::move(option));
      }
    }
  }

  // Layers in front of `edge` are served by the nearest worker, the others by worker `behind`.
  struct Split {
    int edge = 0;
    int behind = -1;
  };
  std::vector<Split> SplitsOf(const std::vector<int>& layers, const std::vector<int>& workers) const {
    std::vector<Split> splits = {{p_.num_layers, -1}};
    const int count = static_cast<int>(layers.size());
    const int step = std::max((count + kMostSplits - 1) / kMostSplits, 1);
    for (size_t other = 1; other < workers.size(); ++other) {
      for (int behind = step; behind < count + step && count > 0; behind += step) {
        splits.push_back({layers[S(std::max(count - behind, 0))], workers[other]});
      }
    }
    return splits;
  }

  static void AppendPart(StageChoice* choice, int layer, int worker) {
    if (!choice->parts.empty() && choice->parts.back().worker == worker &&
        choice->parts.back().layers.last == layer) {
      choice->parts.back().layers.last = layer + 1;
    } else {
      choice->parts.push_back({worker, {layer, layer + 1}});
    }
  }

  // Experts workers without pins, those of the candidate's own host first.
  std::vector<int> Workers(int candidate) const {
    std::vector<int> workers;
    for (const bool same_host : {true, false}) {
      for (size_t e = 0; e < p_.experts.size(); ++e) {
        if (p_.experts[e].pinned.empty() &&
            (p_.experts[e].host == p_.stages[S(candidate)].host) == same_host) {
          workers.push_back(static_cast<int>(e));
        }
      }
    }
    return workers;
  }

  const Problem& p_;
};

class Search {
 public:
  Search(const Problem& problem, const SearchLimits& limits, bool least_ram)
      : p_(problem), limits_(limits), least_ram_(least_ram), options_(problem) {}

  std::optional<SearchResult> Run() {
    start_.host = ExpertsBaseNeed(p_);
    if (p_.num_layers == 0 || !FitsHosts(start_.host)) return std::nullopt;
    fronts_.resize(p_.stages.size() * S(p_.num_layers + 1));
    for (int i = 0; i < static_cast<int>(p_.stages.size()); ++i) {
      for (int first = 0; first < p_.num_layers; ++first) Extend(i, first);
    }
    const Partial* best = nullptr;
    for (int i = 0; i < static_cast<int>(p_.stages.size()); ++i) {
      if (!MaySkip(i + 1, static_cast<int>(p_.stages.size()))) continue;
      for (const Partial& p : FrontOf(i, p_.num_layers).points()) {
        if (best == nullptr || Value(p) < Value(*best)) best = &p;
      }
    }
    if (best == nullptr) return std::nullopt;
    SearchResult result;
    result.seconds = best->seconds;
    result.host = best->host;
    for (const Partial* p = best; p != &start_; p = p->before) result.stages.push_back(p->choice);
    std::reverse(result.stages.begin(), result.stages.end());
    return result;
  }

 private:
  double Value(const Partial& p) const {
    if (!least_ram_) return p.seconds;
    double sum = 0;
    for (uint64_t bytes : p.host) sum += static_cast<double>(bytes);
    return sum;
  }

  Front& FrontOf(int i, int cut) {
    return fronts_[S(i) * S(p_.num_layers + 1) + S(cut)];
  }

  bool MaySkip(int from, int to) const {
    for (int i = from; i < to; ++i) {
      if (p_.stages[S(i)].required) return false;
    }
    return true;
  }

  bool MayCut(int cut) const {
    // The MTP layer stays with the head and the last layer of the trunk.
    return cut == p_.num_layers || cut < p_.model->config.num_layers;
  }

  bool FitsHosts(const std::vector<uint64_t>& host) const {
    for (size_t h = 0; h < host.size() && !limits_.any_ram; ++h) {
      if (host[h] > p_.hosts[h].capacity) return false;
    }
    return true;
  }

  // The partial assignments that candidate i may continue at `first`, with the candidate each ends
  // with (-1: none).
  std::vector<std::pair<int, const Partial*>> Incoming(int i, int first) {
    std::vector<std::pair<int, const Partial*>> incoming;
    if (first == 0) {
      if (MaySkip(0, i)) incoming.emplace_back(-1, &start_);
      return incoming;
    }
    for (int before = 0; before < i; ++before) {
      if (!MaySkip(before + 1, i)) continue;
      for (const Partial& p : FrontOf(before, first).points()) incoming.emplace_back(before, &p);
    }
    return incoming;
  }

  void Extend(int i, int first) {
    const StageCandidate& s = p_.stages[S(i)];
    if (s.layers && s.layers->first != first) return;
    const std::vector<std::pair<int, const Partial*>> incoming = Incoming(i, first);
    if (incoming.empty()) return;
    for (int last = first + 1; last <= p_.num_layers; ++last) {
      if (!MayCut(last) || (s.layers && s.layers->last != last)) continue;
      const double fixed =
          p_.fixed_bytes[static_cast<size_t>(s.kind)].Of(first, last);
      if (fixed > static_cast<double>(s.capacity)) break;
      for (const StageChoice& choice : options_.Of(i, {first, last})) {
        if (PrefillSeconds(p_, choice) > limits_.stage_prefill_seconds) continue;
        Connect(i, incoming, choice);
      }
    }
  }

  void Connect(int i, const std::vector<std::pair<int, const Partial*>>& incoming,
               const StageChoice& choice) {
    const StageNeed need = NeedOf(p_, choice);
    const double seconds = DecodeSeconds(p_, choice);
    Front& front = FrontOf(i, choice.layers.last);
    int hop_from = -2;
    double hop = 0;
    for (const auto& [before, partial] : incoming) {
      if (before != hop_from) {
        hop_from = before;
        hop = before < 0 ? 0 : HopBetween(p_, before, i, choice.layers.first).decode_seconds;
      }
      Partial next;
      next.seconds = partial->seconds + seconds + hop;
      next.host = partial->host;
      for (size_t h = 0; h < next.host.size(); ++h) next.host[h] += need.host[h];
      if (!FitsHosts(next.host) || !front.Wants(next)) continue;
      next.choice = choice;
      next.before = partial;
      front.Insert(std::move(next));
    }
  }

  const Problem& p_;
  const SearchLimits& limits_;
  const bool least_ram_;
  const StageOptions options_;
  Partial start_;
  // By candidate and cut. A front is complete before a later candidate reads it, so pointers into
  // it stay valid.
  std::vector<Front> fronts_;
};

}  // namespace

std::optional<SearchResult> FindBest(const Problem& problem, const SearchLimits& limits) {
  return Search(problem, limits, false).Run();
}

std::optional<SearchResult> FindLeastRam(const Problem& problem) {
  return Search(problem, {.any_ram = true}, true).Run();
}

}  // namespace packtrain

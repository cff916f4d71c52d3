#include "coordinator/placement/search.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/container/inlined_vector.h"
#include "coordinator/placement/speed.h"
#include "coordinator/placement/stage_options.h"

namespace packtrain {
namespace {

// Work that grows with the number of hosts is bounded: how many partial assignments are kept per
// state.
size_t MostPartials(const Problem& problem) {
  return problem.hosts.size() == 1 || problem.num_layers <= kSmallModel ? 512 : 24;
}

size_t S(int value) { return static_cast<size_t>(value); }

using HostBytes = absl::InlinedVector<uint64_t, 2>;

// One way in which a candidate can carry a range of layers, with what it takes.
struct Option {
  StageChoice choice;
  double seconds = 0;
  double prefill_seconds = 0;
  HostBytes host;
};

// Layers [0, cut) are placed; the last device used is known from where this is kept.
struct Partial {
  double seconds = 0;
  HostBytes host;
  const Option* option = nullptr;
  const Partial* before = nullptr;
};

// What a search keeps of partial assignments that end alike.
enum class Keep : uint8_t {
  kFastest,
  kLeastRam,  // of all hosts together
  kUnbeaten,  // every one that no other beats in time and in each host's RAM
};

uint64_t Sum(const HostBytes& host) {
  uint64_t sum = 0;
  for (uint64_t bytes : host) sum += bytes;
  return sum;
}

bool Beats(const Partial& a, const Partial& b, Keep keep) {
  if (keep == Keep::kFastest) return a.seconds <= b.seconds;
  if (keep == Keep::kLeastRam) return Sum(a.host) <= Sum(b.host);
  if (a.seconds > b.seconds) return false;
  for (size_t h = 0; h < a.host.size(); ++h) {
    if (a.host[h] > b.host[h]) return false;
  }
  return true;
}

// Partial assignments none of which beats another, by rising time.
class Front {
 public:
  bool Wants(const Partial& p, Keep keep) const {
    for (const Partial& kept : points_) {
      if (Beats(kept, p, keep)) return false;
      if (kept.seconds > p.seconds && keep == Keep::kUnbeaten) break;
    }
    return true;
  }
  // REQUIRES: Wants(p, keep).
  void Insert(const Partial& p, Keep keep, size_t most) {
    std::erase_if(points_, [&](const Partial& kept) { return Beats(p, kept, keep); });
    const auto at =
        std::upper_bound(points_.begin(), points_.end(), p,
                         [](const Partial& a, const Partial& b) { return a.seconds < b.seconds; });
    points_.insert(at, p);
    if (points_.size() > most) Thin();
  }
  const std::vector<Partial>& points() const { return points_; }

 private:
  // Keeps the fastest, the slowest (of least RAM, with one host) and every other one between.
  void Thin() {
    std::vector<Partial> kept;
    for (size_t i = 0; i < points_.size(); ++i) {
      if (i % 2 == 0 || i + 1 == points_.size()) kept.push_back(std::move(points_[i]));
    }
    points_ = std::move(kept);
  }

  std::vector<Partial> points_;
};

}  // namespace

// Options by candidate and range, made once and used by every search.
class DivisionSearch::Table {
 public:
  Table(const Problem& problem, bool nearest_only) : n_(S(problem.num_layers) + 1) {
    const StageOptions options(problem, nearest_only);
    nearest_is_best_ = options.NearestIsBest();
    table_.resize(problem.stages.size() * n_ * n_);
    for (int i = 0; i < static_cast<int>(problem.stages.size()); ++i) {
      const StageCandidate& s = problem.stages[S(i)];
      for (int first = 0; first < problem.num_layers; ++first) {
        if (s.layers && s.layers->first != first) continue;
        for (int last = first + 1; last <= problem.num_layers; ++last) {
          if (!MayCut(problem, last) || (s.layers && s.layers->last != last)) continue;
          const double fixed = problem.fixed_bytes[static_cast<size_t>(s.kind)].Of(first, last);
          if (fixed > static_cast<double>(s.capacity)) break;
          for (StageChoice& choice : options.Of(i, {first, last})) {
            const StageNeed need = NeedOf(problem, choice);
            Option option;
            option.seconds = DecodeSeconds(problem, choice);
            option.prefill_seconds = PrefillSeconds(problem, choice);
            option.host.assign(need.host.begin(), need.host.end());
            option.choice = std::move(choice);
            table_[Index(i, first, last)].push_back(std::move(option));
          }
        }
      }
    }
  }
  const std::vector<Option>& Of(int candidate, int first, int last) const {
    return table_[Index(candidate, first, last)];
  }
  bool nearest_is_best() const { return nearest_is_best_; }

 private:
  static bool MayCut(const Problem& problem, int cut) {
    // The MTP layer stays with the head and the last layer of the trunk.
    return cut == problem.num_layers || cut < problem.model->config.num_layers;
  }
  size_t Index(int candidate, int first, int last) const {
    return (S(candidate) * n_ + S(first)) * n_ + S(last);
  }

  size_t n_;
  std::vector<std::vector<Option>> table_;
  bool nearest_is_best_ = true;
};

namespace {

class Search {
 public:
  Search(const Problem& problem, const DivisionSearch::Table& table, const SearchLimits& limits,
         Keep keep)
      : p_(problem), table_(table), limits_(limits), keep_(keep) {}

  std::optional<SearchResult> Run() {
    const std::vector<uint64_t> base = ExpertsBaseNeed(p_);
    start_.host.assign(base.begin(), base.end());
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
    result.host.assign(best->host.begin(), best->host.end());
    for (const Partial* p = best; p != &start_; p = p->before) {
      result.stages.push_back(p->option->choice);
    }
    std::reverse(result.stages.begin(), result.stages.end());
    return result;
  }

 private:
  double Value(const Partial& p) const {
    return keep_ == Keep::kLeastRam ? static_cast<double>(Sum(p.host)) : p.seconds;
  }

  Front& FrontOf(int i, int cut) { return fronts_[S(i) * S(p_.num_layers + 1) + S(cut)]; }

  bool MaySkip(int from, int to) const {
    for (int i = from; i < to; ++i) {
      if (p_.stages[S(i)].required) return false;
    }
    return true;
  }

  bool FitsHosts(const HostBytes& host) const {
    for (size_t h = 0; h < host.size() && keep_ == Keep::kUnbeaten; ++h) {
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
    const std::vector<std::pair<int, const Partial*>> incoming = Incoming(i, first);
    if (incoming.empty()) return;
    for (int last = first + 1; last <= p_.num_layers; ++last) {
      for (const Option& option : table_.Of(i, first, last)) {
        if (option.prefill_seconds > limits_.stage_prefill_seconds) continue;
        Connect(i, incoming, option);
      }
    }
  }

  void Connect(int i, const std::vector<std::pair<int, const Partial*>>& incoming,
               const Option& option) {
    Front& front = FrontOf(i, option.choice.layers.last);
    int hop_from = -2;
    double hop = 0;
    for (const auto& [before, partial] : incoming) {
      if (before != hop_from) {
        hop_from = before;
        hop = before < 0 ? 0 : HopBetween(p_, before, i, option.choice.layers.first).Seconds(1);
      }
      Partial next;
      next.seconds = partial->seconds + option.seconds + hop;
      next.host = partial->host;
      for (size_t h = 0; h < next.host.size(); ++h) next.host[h] += option.host[h];
      if (!FitsHosts(next.host) || !front.Wants(next, keep_)) continue;
      next.option = &option;
      next.before = partial;
      front.Insert(next, keep_, MostPartials(p_));
    }
  }

  const Problem& p_;
  const DivisionSearch::Table& table_;
  const SearchLimits& limits_;
  const Keep keep_;
  Partial start_;
  // By candidate and cut. A front is complete before a later candidate reads it, so pointers into
  // it stay valid.
  std::vector<Front> fronts_;
};

}  // namespace

DivisionSearch::DivisionSearch(const Problem& problem)
    : problem_(problem), nearest_(std::make_unique<Table>(problem, true)) {}
DivisionSearch::~DivisionSearch() = default;

const DivisionSearch::Table& DivisionSearch::All() {
  if (problem_.experts.size() < 2) return *nearest_;
  if (all_ == nullptr) all_ = std::make_unique<Table>(problem_, false);
  return *all_;
}

std::optional<SearchResult> DivisionSearch::Find(const SearchLimits& limits) {
  // Where RAM is no matter, one partial assignment per state is enough; if its best happens to
  // fit, none is faster.
  if (nearest_->nearest_is_best()) {
    std::optional<SearchResult> fastest = Search(problem_, *nearest_, limits, Keep::kFastest).Run();
    if (!fastest) return std::nullopt;
    bool fits = true;
    for (size_t h = 0; h < fastest->host.size(); ++h) {
      fits &= fastest->host[h] <= problem_.hosts[h].capacity;
    }
    if (fits) return fastest;
  }
  return Search(problem_, All(), limits, Keep::kUnbeaten).Run();
}

std::optional<SearchResult> DivisionSearch::FindLeastRam() {
  return Search(problem_, All(), {}, Keep::kLeastRam).Run();
}

}  // namespace packtrain

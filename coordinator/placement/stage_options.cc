#include "coordinator/placement/stage_options.h"

#include <algorithm>
#include <utility>

namespace packtrain {
namespace {

// Work that grows with the number of hosts is bounded: how many ways of dividing a stage's experts
// between two hosts are tried.
int MostSplits(int layers) { return layers <= kSmallModel ? kSmallModel : 3; }

size_t S(int value) { return static_cast<size_t>(value); }

void AppendPart(StageChoice* choice, int layer, int worker) {
  if (!choice->parts.empty() && choice->parts.back().worker == worker &&
      choice->parts.back().layers.last == layer) {
    choice->parts.back().layers.last = layer + 1;
  } else {
    choice->parts.push_back({worker, {layer, layer + 1}});
  }
}

}  // namespace

StageOptions::StageOptions(const Problem& problem, bool nearest_only)
    : p_(problem), nearest_only_(nearest_only) {
  for (size_t i = 0; i < p_.stages.size(); ++i) {
    more_is_better_.push_back(MoreIsBetter(static_cast<int>(i)));
  }
}

std::vector<StageChoice> StageOptions::Of(int candidate, LayerRange layers) const {
  const StageCandidate& s = p_.stages[S(candidate)];
  std::vector<StageChoice> options;
  const LayerRange moe = {std::max(layers.first, p_.first_moe), layers.last};
  if (s.resident) {
    const bool outside = !s.resident->empty() &&
                         (s.resident->first < layers.first || s.resident->last > layers.last);
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
  const bool more_is_better = more_is_better_[S(candidate)];
  for (const bool at_front : {true, false}) {
    for (int resident = moe.size(); resident >= 0; --resident) {
      if (!at_front && (resident == 0 || resident == moe.size())) continue;
      const LayerRange in = at_front ? LayerRange{moe.first, moe.first + resident}
                                     : LayerRange{moe.last - resident, moe.last};
      const LayerRange out =
          at_front ? LayerRange{in.last, moe.last} : LayerRange{moe.first, in.first};
      if ((s.narrow && !out.empty()) || AnyForced(in)) continue;
      StageChoice least = {candidate, layers, in, {}};
      if (!out.empty()) least.parts.push_back({0, out});
      if (DeviceNeedOf(p_, least) > s.capacity) continue;
      const size_t before = options.size();
      Add({candidate, layers, in, {}}, {out}, &options);
      if (more_is_better && options.size() > before) break;
    }
  }
  return options;
}

bool StageOptions::NearestIsBest() const {
  for (size_t i = 0; i < p_.stages.size(); ++i) {
    const std::vector<int> workers = Workers(static_cast<int>(i));
    for (size_t w = 1; w < workers.size(); ++w) {
      for (int l = p_.first_moe; l < p_.num_layers; ++l) {
        if (p_.remote_seconds[i][S(workers[w])].Of(l, l + 1) <
            p_.remote_seconds[i][S(workers[0])].Of(l, l + 1)) {
          return false;
        }
      }
    }
  }
  return true;
}

bool StageOptions::AnyForced(const LayerRange& range) const {
  for (int l = range.first; l < range.last; ++l) {
    if (p_.forced[S(l)] >= 0) return true;
  }
  return false;
}

bool StageOptions::MoreIsBetter(int candidate) const {
  for (const RunningSum& remote : p_.remote_seconds[S(candidate)]) {
    for (int l = p_.first_moe; l < p_.num_layers; ++l) {
      if (p_.resident_seconds[S(candidate)].Of(l, l + 1) > remote.Of(l, l + 1)) return false;
    }
  }
  return true;
}

void StageOptions::AddPinned(int candidate, const LayerRange& layers, const LayerRange& moe,
                             const LayerRange& resident, std::vector<StageChoice>* options) const {
  // Dense layers in the pinned range have no experts to keep.
  const LayerRange in = {std::max(resident.first, p_.first_moe), resident.last};
  if (in.empty()) {
    Add({candidate, layers, {moe.first, moe.first}, {}}, {moe}, options);
  } else if (!AnyForced(resident)) {
    Add({candidate, layers, in, {}}, {{moe.first, in.first}, {in.last, moe.last}}, options);
  }
}

void StageOptions::Add(StageChoice choice, const std::vector<LayerRange>& away,
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
        AppendPart(&option, l, forced >= 0 ? forced : l < split.edge ? split.front : split.behind);
      }
    }
    if (DeviceNeedOf(p_, option) <= p_.stages[S(option.candidate)].capacity) {
      options->push_back(std::move(option));
    }
  }
}

std::vector<StageOptions::Split> StageOptions::SplitsOf(const std::vector<int>& layers,
                                                        const std::vector<int>& workers) const {
  const int nearest = workers.empty() ? -1 : workers.front();
  std::vector<Split> splits = {{p_.num_layers, nearest, nearest}};
  const int count = static_cast<int>(layers.size());
  const int most = MostSplits(p_.num_layers);
  const int step = std::max((count + most - 1) / most, 1);
  for (size_t i = 1; i < workers.size() && count > 0 && !nearest_only_; ++i) {
    for (int away = step; away < count; away += step) {
      splits.push_back({layers[S(count - away)], nearest, workers[i]});
      splits.push_back({layers[S(away)], workers[i], nearest});
    }
    splits.push_back({p_.num_layers, workers[i], workers[i]});
  }
  return splits;
}

std::vector<int> StageOptions::Workers(int candidate) const {
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

}  // namespace packtrain

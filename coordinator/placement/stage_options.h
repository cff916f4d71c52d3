#pragma once

// The ways in which one device can carry a range of layers: what the search chooses among.

#include <vector>

#include "coordinator/placement/problem.h"

namespace packtrain {

// Small models are searched in full.
inline constexpr int kSmallModel = 16;

class StageOptions {
 public:
  // `nearest_only`: experts stay where a stage reaches them soonest. `problem` must outlive this.
  StageOptions(const Problem& problem, bool nearest_only);

  // All ways that fit the candidate's device and its pins.
  std::vector<StageChoice> Of(int candidate, LayerRange layers) const;

  // Whether leaving the nearest experts worker never saves time.
  bool NearestIsBest() const;

 private:
  bool AnyForced(const LayerRange& range) const;
  bool MoreIsBetter(int candidate) const;
  void AddPinned(int candidate, const LayerRange& layers, const LayerRange& moe,
                 const LayerRange& resident, std::vector<StageChoice>* options) const;
  // Adds `choice` with every way of serving the experts of the layers in `away`, if it fits its
  // device.
  void Add(StageChoice choice, const std::vector<LayerRange>& away,
           std::vector<StageChoice>* options) const;

  // Layers before `edge` are served by worker `front`, the others by worker `behind`.
  struct Split {
    int edge = 0;
    int front = -1;
    int behind = -1;
  };
  // All layers on the nearest worker, or some of them, at either end, on another.
  std::vector<Split> SplitsOf(const std::vector<int>& layers,
                              const std::vector<int>& workers) const;
  // Experts workers without pins, those of the candidate's own host first.
  std::vector<int> Workers(int candidate) const;

  const Problem& p_;
  const bool nearest_only_;
  std::vector<bool> more_is_better_;
};

}  // namespace packtrain

#include "coordinator/scheduler/decode_groups.h"

#include <algorithm>

#include "common/base/check.h"

namespace packtrain {
namespace {

// In the stages, and queued in front of them.
constexpr int kStepsMin = 2;
// What a message costs, on both ends, is about a tenth of a millisecond of a core: where a step
// takes not much longer, this many share one. What comes new waits for all steps on the way, and
// what overruns a stop is computed in vain, so these are bounded in time.
constexpr int kStepsMax = 16;
constexpr float kAheadUs = 12000;

int MinPending(const std::vector<Sequence*>& members, int at_most) {
  int fewest = at_most;
  for (const Sequence* sequence : members) fewest = std::min(fewest, sequence->samples_pending);
  return fewest;
}

}  // namespace

DecodeGroups::DecodeGroups(int num_stages)
    : groups_(static_cast<size_t>(num_stages)), steps_max_(kStepsMin) {}

void DecodeGroups::Add(Sequence* sequence) {
  const auto smallest = std::min_element(
      groups_.begin(), groups_.end(),
      [](const Group& a, const Group& b) { return a.members.size() < b.members.size(); });
  smallest->members.push_back(sequence);
  sequence->group = static_cast<int>(smallest - groups_.begin());
}

void DecodeGroups::Remove(Sequence* sequence) {
  Group& group = groups_[static_cast<size_t>(sequence->group)];
  CHECK(std::erase(group.members, sequence) == 1);
  sequence->group = -1;
  if (group.members.empty()) group.chunks_since = 0;
  Rebalance();
}

void DecodeGroups::Rebalance() {
  const auto [smallest, largest] = std::minmax_element(
      groups_.begin(), groups_.end(),
      [](const Group& a, const Group& b) { return a.members.size() < b.members.size(); });
  if (largest->members.size() < smallest->members.size() + 2) return;
  Sequence* moved = largest->members.back();
  largest->members.pop_back();
  smallest->members.push_back(moved);
  moved->group = static_cast<int>(smallest - groups_.begin());
}

std::vector<int> DecodeGroups::Idle() const {
  std::vector<int> idle;
  for (size_t i = 0; i < groups_.size(); ++i) {
    if (groups_[i].in_flight == 0 && MinPending(groups_[i].members, 1) == 0) {
      idle.push_back(static_cast<int>(i));
    }
  }
  std::sort(idle.begin(), idle.end(), [&](int a, int b) {
    return groups_[static_cast<size_t>(a)].last_step < groups_[static_cast<size_t>(b)].last_step;
  });
  return idle;
}

int DecodeGroups::Ahead() const {
  int next = -1;
  for (size_t i = 0; i < groups_.size(); ++i) {
    if (groups_[i].members.empty()) continue;
    if (next < 0 || groups_[i].last_step < groups_[static_cast<size_t>(next)].last_step) {
      next = static_cast<int>(i);
    }
  }
  if (next < 0) return -1;
  const Group& group = groups_[static_cast<size_t>(next)];
  const bool ready = group.filling && group.in_flight < steps_max_ &&
                     MinPending(group.members, steps_max_) < steps_max_;
  return ready ? next : -1;
}

bool DecodeGroups::empty() const {
  return std::all_of(groups_.begin(), groups_.end(),
                     [](const Group& group) { return group.members.empty(); });
}

bool DecodeGroups::ChunkAllowed() const {
  return std::all_of(groups_.begin(), groups_.end(), [&](const Group& group) {
    return group.members.empty() || group.chunks_since < static_cast<int>(groups_.size());
  });
}

void DecodeGroups::ChunkSent() {
  for (Group& group : groups_) {
    if (!group.members.empty()) ++group.chunks_since;
  }
}

void DecodeGroups::StepSent(int group, uint64_t step_id) {
  Group& g = groups_[static_cast<size_t>(group)];
  ++g.in_flight;
  if (g.in_flight >= steps_max_) g.filling = false;
  g.last_step = step_id;
  g.chunks_since = 0;
}

void DecodeGroups::StepReturned(int group, float interval_us) {
  Group& g = groups_[static_cast<size_t>(group)];
  --g.in_flight;
  if (g.in_flight <= steps_max_ / 2) g.filling = true;
  if (!(interval_us > 0)) return;
  interval_us_ += (interval_us - interval_us_) / (interval_us_ > 0 ? 8.0F : 1.0F);
  const auto busy = std::count_if(groups_.begin(), groups_.end(),
                                  [](const Group& other) { return !other.members.empty(); });
  const float round_us = interval_us_ * static_cast<float>(std::max<std::ptrdiff_t>(1, busy));
  steps_max_ =
      std::max(kStepsMin, static_cast<int>(std::min<float>(kStepsMax, kAheadUs / round_us)));
}

}  // namespace packtrain

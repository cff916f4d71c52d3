#include "coordinator/scheduler/decode_groups.h"

#include <algorithm>

#include "common/base/check.h"

namespace packtrain {
namespace {

// In the stages, and queued in front of them.
constexpr int kStepsInFlightMax = 2;

int MinPending(const std::vector<Sequence*>& members) {
  int fewest = kStepsInFlightMax;
  for (const Sequence* sequence : members) fewest = std::min(fewest, sequence->samples_pending);
  return fewest;
}

}  // namespace

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
    if (groups_[i].in_flight == 0 && MinPending(groups_[i].members) == 0) {
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
  const bool ready =
      group.in_flight < kStepsInFlightMax && MinPending(group.members) < kStepsInFlightMax;
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
  g.last_step = step_id;
  g.chunks_since = 0;
}

}  // namespace packtrain

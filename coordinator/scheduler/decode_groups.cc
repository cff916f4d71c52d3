#include "coordinator/scheduler/decode_groups.h"

#include <algorithm>

#include "common/base/check.h"

namespace packtrain {
namespace {

// In the stages, and queued in front of them.
constexpr int kStepsInFlightMax = 2;

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

std::vector<int> DecodeGroups::Ready(Turn turn) const {
  std::vector<int> ready;
  for (size_t i = 0; i < groups_.size(); ++i) {
    const Group& group = groups_[i];
    if (group.in_flight >= (turn == Turn::kIdle ? 1 : kStepsInFlightMax)) continue;
    const bool any = std::any_of(group.members.begin(), group.members.end(), [&](Sequence* s) {
      return s->samples_pending < (turn == Turn::kIdle ? 1 : kStepsInFlightMax);
    });
    if (any) ready.push_back(static_cast<int>(i));
  }
  std::sort(ready.begin(), ready.end(), [&](int a, int b) {
    return groups_[static_cast<size_t>(a)].last_step < groups_[static_cast<size_t>(b)].last_step;
  });
  return ready;
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

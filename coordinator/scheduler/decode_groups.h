#pragma once

// Splits the decoding sequences over as many groups as the pipeline has stages, so that all stages
// work at once, and says whose turn it is. A group has one step in the stages and, running ahead of
// its sampled tokens, one more on the way; of quick steps more, so that many travel in one message.

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "coordinator/scheduler/sequence.h"

namespace packtrain {

class DecodeGroups {
 public:
  explicit DecodeGroups(int num_stages);

  void Add(Sequence* sequence);
  void Remove(Sequence* sequence);
  std::span<Sequence* const> members(int group) const {
    return groups_[static_cast<size_t>(group)].members;
  }

  // Groups that the pipeline has nothing of and with a sequence whose token is known, least
  // recently sent first.
  std::vector<int> Idle() const;
  // The group that may be sent one step ahead, -1 for none. Strictly in turn: two steps of one
  // group behind each other would keep the first stage waiting for a token.
  int Ahead() const;
  // How many steps of one group may be on the way.
  int steps_max() const { return steps_max_; }

  bool empty() const;  // nobody decodes

  // Whether another chunk of prefill may go between the decode steps: each group sees at most
  // num_stages of them (the time one chunk needs for the whole pipeline) between two of its own.
  bool ChunkAllowed() const;
  void ChunkSent();
  void StepSent(int group, uint64_t step_id);
  // `interval_us`: from the previous decode step's end to its own, 0 if not known.
  void StepReturned(int group, float interval_us);

 private:
  struct Group {
    std::vector<Sequence*> members;
    int in_flight = 0;
    bool filling = true;  // from when half of its steps are left until all are on the way
    uint64_t last_step = 0;
    int chunks_since = 0;  // since its last step
  };
  void Rebalance();

  std::vector<Group> groups_;
  float interval_us_ = 0;  // smoothed; 0: not known
  int steps_max_;
};

}  // namespace packtrain

#pragma once

// Splits the decoding sequences over as many groups as the pipeline has stages, so that all stages
// work at once, and says whose turn it is. A group has one step in the stages and, running ahead of
// its sampled tokens, one more on the way.

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "coordinator/scheduler/sequence.h"

namespace packtrain {

class DecodeGroups {
 public:
  explicit DecodeGroups(int num_stages) : groups_(static_cast<size_t>(num_stages)) {}

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

  bool empty() const;  // nobody decodes

  // Whether another chunk of prefill may go between the decode steps: each group sees at most
  // num_stages of them (the time one chunk needs for the whole pipeline) between two of its own.
  bool ChunkAllowed() const;
  void ChunkSent();
  void StepSent(int group, uint64_t step_id);
  void StepReturned(int group) { --groups_[static_cast<size_t>(group)].in_flight; }

 private:
  struct Group {
    std::vector<Sequence*> members;
    int in_flight = 0;
    uint64_t last_step = 0;
    int chunks_since = 0;  // since its last step
  };
  void Rebalance();

  std::vector<Group> groups_;
};

}  // namespace packtrain

#pragma once

// What a stage remembers of each slot between steps: page table, ids so far, sampling parameters.

#include <cstdint>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "common/model/step.h"

namespace packtrain {

struct Slot {
  SequenceStart start;
  std::vector<TokenId> ids;  // of all positions so far
  std::vector<int32_t> pages;
  absl::Status failed;        // not OK: an earlier step failed and nothing here may be relied on
  uint64_t sampled_step = 0;  // the latest step whose sampled token is known here, and the token
  TokenId sampled_token = -1;
};

class SlotTable {
 public:
  explicit SlotTable(int num_slots);
  Slot& operator[](int32_t slot) { return slots_[static_cast<size_t>(slot)]; }
  int32_t size() const { return static_cast<int32_t>(slots_.size()); }

  // Takes over what a step says about a slot: beginning, page table, position. Does not append the
  // step's tokens. Errors: INVALID_ARGUMENT naming the slot if step and slot do not fit together;
  // the slot's own failure.
  absl::Status Apply(const StepSequence& sequence);
  // Fails every slot of the step.
  void Fail(const Step& step, const absl::Status& status);

 private:
  std::vector<Slot> slots_;
};

}  // namespace packtrain

#include "worker/engine/slots.h"

#include "absl/strings/str_format.h"

namespace packtrain {

SlotTable::SlotTable(int num_slots) : slots_(static_cast<size_t>(num_slots)) {
  const absl::Status unused = absl::FailedPreconditionError("no sequence has begun in this slot");
  for (Slot& slot : slots_) slot.failed = unused;
}

absl::Status SlotTable::Apply(const StepSequence& s) {
  Slot& slot = (*this)[s.slot];
  if (s.begin) {
    slot.start = *s.begin;
    slot.ids = s.begin->history;
    slot.pages.clear();
    slot.failed = absl::OkStatus();
    slot.sampled_step = 0;
  }
  if (!slot.failed.ok()) return slot.failed;
  if (static_cast<size_t>(s.start) > slot.ids.size()) {
    return absl::InvalidArgumentError(
        absl::StrFormat("slot %d: step starts at position %d, the sequence has %d", s.slot, s.start,
                        slot.ids.size()));
  }
  if (static_cast<size_t>(s.first_page) > slot.pages.size()) {
    return absl::InvalidArgumentError(
        absl::StrFormat("slot %d: first_page is %d, the page table has %d", s.slot, s.first_page,
                        slot.pages.size()));
  }
  slot.ids.resize(static_cast<size_t>(s.start));
  slot.pages.resize(static_cast<size_t>(s.first_page));
  slot.pages.insert(slot.pages.end(), s.pages.begin(), s.pages.end());
  const size_t positions = static_cast<size_t>(s.start) + static_cast<size_t>(s.num_tokens());
  if (slot.pages.size() * kPagePositions < positions) {
    return absl::InvalidArgumentError(absl::StrFormat("slot %d: %d pages do not cover %d positions",
                                                      s.slot, slot.pages.size(), positions));
  }
  return absl::OkStatus();
}

void SlotTable::Fail(const Step& step, const absl::Status& status) {
  for (const StepSequence& s : step.sequences) (*this)[s.slot].failed = status;
}

}  // namespace packtrain

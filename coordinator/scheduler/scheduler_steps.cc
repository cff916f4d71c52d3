// Admission and the making of steps.

#include <algorithm>
#include <utility>

#include "common/base/check.h"
#include "common/model/snapshots.h"
#include "coordinator/scheduler/scheduler.h"

namespace packtrain {
namespace {

// What a request must save by waiting for another one that is computing the same prefix.
constexpr int kLeaderGainMin = kPagePositions;
// Rows of a chunk while somebody decodes, who waits for it. Shorter ones would hardly end sooner
// where experts are streamed to a GPU: copying a layer takes as long for 100 rows as for these.
constexpr int kChunkBesideDecode = 2048;

int PagesFor(int positions) { return (positions + kPagePositions - 1) / kPagePositions; }

}  // namespace

// The first position after `position` at which a recurrent model saves a snapshot: every interval,
// in front of the last user turn, and one token before the prompt's end, because the last token
// must be computed again to sample from it.
int Scheduler::SnapshotAfter(const Sequence& sequence, int position) const {
  int next = (position / kSnapshotInterval + 1) * kSnapshotInterval;
  for (int candidate : {sequence.request.last_turn_start, sequence.prompt_size() - 1}) {
    if (candidate > position) next = std::min(next, candidate);
  }
  return next;
}

void Scheduler::Admit() {
  if (!may_admit_) return;
  may_admit_ = false;
  for (auto it = waiting_.begin(); it != waiting_.end();) {
    Sequence* sequence = it->second;
    ++it;
    if (std::find(slots_.begin(), slots_.end(), nullptr) == slots_.end()) return;
    // Who has no room keeps its turn; who waits for a leader lets others pass.
    if (TryAdmit(sequence) == Admission::kNoRoom) return;
  }
}

// Whether a sequence in prefill will soon have computed clearly more of this prompt than is there.
bool Scheduler::LeaderAhead(const Sequence& sequence, int matched) const {
  for (const auto& [arrival, leader] : prefilling_) {
    const auto differ = std::mismatch(sequence.ids.begin(), sequence.ids.end(), leader->ids.begin(),
                                      leader->ids.end());
    const int common =
        std::min(static_cast<int>(differ.first - sequence.ids.begin()), sequence.num_ids() - 1);
    int shared = common;
    if (limits_.num_snapshots > 0) {
      shared = 0;
      for (int at = SnapshotAfter(*leader, leader->computed); at <= common;
           at = SnapshotAfter(*leader, at)) {
        shared = at;
      }
    }
    if (shared > leader->computed && shared >= matched + kLeaderGainMin) return true;
  }
  return false;
}

// References what `match` offers and gets the page for the partial rest; false if there is none.
bool Scheduler::TakePrefix(Sequence* sequence, const PrefixMatch& match) {
  for (int32_t page : match.pages) pool_->AddUser(page);
  if (match.copy_from >= 0) pool_->AddUser(match.copy_from);
  if (match.snapshot >= 0) cache_->PinSnapshot(match.snapshot);
  sequence->pages = match.pages;
  sequence->computed = match.length;
  sequence->copy_from = match.copy_from;
  sequence->restore_snapshot = match.snapshot;

  const int occupied = static_cast<int>(
      slots_.size() - static_cast<size_t>(std::count(slots_.begin(), slots_.end(), nullptr)));
  int needed = PagesFor(sequence->num_ids()) - static_cast<int>(match.pages.size());
  // Others will take what the rest of their prompts needs, and each running sequence will want its
  // next page soon; without that much slack the newcomer would be the one to be sent back.
  for (const auto& [arrival, other] : prefilling_) {
    needed += PagesFor(other->prefill_target) - static_cast<int>(other->pages.size());
  }
  if (pool_->num_available() >= needed + occupied) {
    if (match.copy_from < 0) return true;
    if (const int32_t target = cache_->AllocatePage(); target >= 0) {
      sequence->pages.push_back(target);
      return true;
    }
  }
  for (int32_t page : match.pages) pool_->RemoveUser(page);
  if (match.copy_from >= 0) pool_->RemoveUser(match.copy_from);
  if (match.snapshot >= 0) cache_->UnpinSnapshot(match.snapshot);
  sequence->pages.clear();
  sequence->computed = 0;
  sequence->copy_from = -1;
  sequence->restore_snapshot = -1;
  return false;
}

Scheduler::Admission Scheduler::TryAdmit(Sequence* sequence) {
  // Log-probabilities of the prompt need every position computed.
  const bool reuse = !sequence->request.prompt_logprobs || sequence->prompt_done;
  PrefixMatch match;
  if (reuse) {
    match = cache_->Match(sequence->ids, sequence->num_ids() - 1);
    if (LeaderAhead(*sequence, match.length)) return Admission::kAfterLeader;
  }
  if (!TakePrefix(sequence, match)) {
    const bool alone = std::all_of(slots_.begin(), slots_.end(),
                                   [](const Sequence* other) { return other == nullptr; });
    // Alone it always fits if it takes nothing over: everything else can be evicted.
    if (!alone) return Admission::kNoRoom;
  }
  Occupy(sequence);
  return Admission::kAdmitted;
}

void Scheduler::Occupy(Sequence* sequence) {
  const auto slot = std::find(slots_.begin(), slots_.end(), nullptr);
  *slot = sequence;
  sequence->slot = static_cast<int>(slot - slots_.begin());
  sequence->phase = Sequence::Phase::kPrefill;
  sequence->prefill_target = sequence->num_ids();
  if (!sequence->prompt_done) {
    sequence->cached_tokens = std::min(sequence->computed, sequence->prompt_size());
  }
  waiting_.erase(sequence->arrival);
  prefilling_.emplace(sequence->arrival, sequence);
}

// Appends one page to the sequence's table. When all are in use the youngest sequence goes back
// to waiting; false if that does not give a page right now.
bool Scheduler::GrowPages(Sequence* sequence) {
  for (;;) {
    if (const int32_t page = cache_->AllocatePage(); page >= 0) {
      sequence->pages.push_back(page);
      return true;
    }
    // What steps in flight hold comes back without anybody being sent back.
    const bool held = std::any_of(in_flight_.begin(), in_flight_.end(), [](const InFlight& f) {
      return !f.pages.empty() || !f.snapshots.empty();
    });
    if (held) return false;
    Sequence* youngest = sequence;
    for (Sequence* other : slots_) {
      if (other == nullptr) continue;
      if (!other->active()) return false;  // its pages come back with its last step
      if (other->arrival > youngest->arrival) youngest = other;
    }
    ++num_preemptions_;
    Drain(youngest);
    if (youngest == sequence || youngest->phase == Sequence::Phase::kDraining) return false;
  }
}

std::optional<Step> Scheduler::NextStep(SchedulerTime now) {
  if (!up_) return std::nullopt;
  Admit();
  for (int group : groups_->Idle()) {
    if (std::optional<Step> step = DecodeStep(group, now)) return step;
  }
  // Chunks go in front of steps that would only wait at the first stage for their token.
  if (prefill_in_flight_ < 2 * limits_.num_stages && groups_->ChunkAllowed()) {
    if (std::optional<Step> step = PrefillStep(now)) return step;
  }
  const int ahead = groups_->Ahead();
  return ahead < 0 ? std::nullopt : DecodeStep(ahead, now);
}

std::optional<Step> Scheduler::DecodeStep(int group, SchedulerTime now) {
  Step step;
  InFlight record;
  record.group = group;
  // A copy: a member that is sent back to waiting leaves its group.
  const std::span<Sequence* const> members = groups_->members(group);
  for (Sequence* sequence : std::vector<Sequence*>(members.begin(), members.end())) {
    if (static_cast<int>(step.sequences.size()) == limits_.max_tokens) break;
    if (sequence->group == group) AddDecode(sequence, &step, &record);
  }
  return Send(std::move(step), std::move(record), now);
}

std::optional<Step> Scheduler::PrefillStep(SchedulerTime now) {
  Step step;
  InFlight record;
  std::vector<Sequence*> candidates;
  for (const auto& [arrival, sequence] : prefilling_) {
    if (sequence->computed < sequence->prefill_target) candidates.push_back(sequence);
  }
  int rows_left = limits_.max_tokens;
  if (!groups_->empty()) rows_left = std::min(rows_left, kChunkBesideDecode);
  int sharers = static_cast<int>(candidates.size());
  for (Sequence* sequence : candidates) {
    const int share = (rows_left + sharers - 1) / sharers;
    --sharers;
    if (rows_left == 0) break;
    if (sequence->phase != Sequence::Phase::kPrefill) continue;  // sent back meanwhile
    // Chunks end with a page where the share allows, so that whole pages enter the cache.
    const int end = PagesFor(sequence->computed + share) * kPagePositions;
    const int before = sequence->computed;
    AddChunk(sequence, std::min(rows_left, end - before), &step, &record);
    rows_left -= sequence->computed - before;
  }
  return Send(std::move(step), std::move(record), now);
}

// Enters the next `rows` positions of a sequence, whose pages are there, into the step.
StepSequence* Scheduler::Append(Sequence* sequence, int rows, Step* step, InFlight* record) {
  StepSequence& part = step->sequences.emplace_back();
  part.slot = sequence->slot;
  part.start = sequence->computed;
  if (!sequence->begun) {
    sequence->begun = true;
    SequenceStart& begin = part.begin.emplace();
    begin.sampling = sequence->request.sampling;
    begin.prompt_tokens = sequence->prompt_size();
    begin.history.assign(sequence->ids.begin(), sequence->ids.begin() + sequence->computed);
    if (sequence->copy_from >= 0) {
      const size_t target = static_cast<size_t>(sequence->computed / kPagePositions);
      part.page_copies.push_back({sequence->copy_from, sequence->pages[target]});
      record->pages.push_back(std::exchange(sequence->copy_from, -1));
    }
    if (sequence->restore_snapshot >= 0) {
      part.restore_snapshot = sequence->restore_snapshot;
      record->snapshots.push_back(std::exchange(sequence->restore_snapshot, -1));
    }
  }
  part.first_page = sequence->pages_sent;
  part.pages.assign(sequence->pages.begin() + sequence->pages_sent, sequence->pages.end());
  sequence->pages_sent = static_cast<int>(sequence->pages.size());
  part.top_logprobs = sequence->request.logprobs || sequence->request.prompt_logprobs
                          ? sequence->request.top_logprobs
                          : -1;
  sequence->computed += rows;
  ++sequence->in_flight;
  record->parts.push_back({.sequence = sequence});
  return &part;
}

void Scheduler::SampleAfter(Sequence* sequence, StepSequence* part, InFlight* record) {
  part->output = StepOutputKind::kSample;
  record->parts.back().samples = true;
  ++sequence->samples_pending;
  sequence->last_sample_step = next_step_;
}

void Scheduler::SaveSnapshot(Sequence* sequence, StepSequence* part, InFlight* record) {
  if (limits_.num_snapshots == 0) return;
  const int32_t snapshot = cache_->AllocateSnapshot();
  if (snapshot < 0) return;  // a cheaper prefix for somebody later, nothing else
  part->save_snapshot = snapshot;
  cache_->PinSnapshot(snapshot);
  record->snapshots.push_back(snapshot);
  sequence->snapshots.emplace_back(sequence->computed, snapshot);
}

bool Scheduler::AddDecode(Sequence* sequence, Step* step, InFlight* record) {
  const int planned = sequence->num_ids() + sequence->samples_pending;
  if (sequence->samples_pending >= groups_->steps_max() || planned >= sequence->ids_max)
    return false;
  if (PagesFor(sequence->computed + 1) > static_cast<int>(sequence->pages.size()) &&
      !GrowPages(sequence)) {
    return false;
  }
  const int position = sequence->computed;
  StepSequence* part = Append(sequence, 1, step, record);
  if (position < sequence->num_ids()) {
    part->tokens = {sequence->ids[static_cast<size_t>(position)]};
  } else {
    part->token_from_step = sequence->last_sample_step;
  }
  SampleAfter(sequence, part, record);
  if (sequence->computed % kSnapshotInterval == 0) SaveSnapshot(sequence, part, record);
  return true;
}

bool Scheduler::AddChunk(Sequence* sequence, int rows_max, Step* step, InFlight* record) {
  const int first = sequence->computed;
  int end = std::min(sequence->prefill_target, first + rows_max);
  const int snapshot_at = SnapshotAfter(*sequence, first);
  if (limits_.num_snapshots > 0) end = std::min(end, snapshot_at);
  while (static_cast<int>(sequence->pages.size()) < PagesFor(end)) {
    // With some pages in hand, a shorter chunk is better than sending somebody back.
    if (static_cast<int>(sequence->pages.size()) > first / kPagePositions) {
      const int32_t page = cache_->AllocatePage();
      if (page < 0) break;
      sequence->pages.push_back(page);
    } else if (!GrowPages(sequence)) {
      return false;
    }
  }
  end = std::min(end, static_cast<int>(sequence->pages.size()) * kPagePositions);

  StepSequence* part = Append(sequence, end - first, step, record);
  part->tokens.assign(sequence->ids.begin() + first, sequence->ids.begin() + end);
  if (end == snapshot_at) SaveSnapshot(sequence, part, record);
  Part& mine = record->parts.back();
  mine.prompt_logprobs = sequence->request.prompt_logprobs && !sequence->prompt_done;
  if (end == sequence->prefill_target) {
    mine.ends_prefill = true;
    if (sequence->num_ids() < sequence->ids_max) {
      SampleAfter(sequence, part, record);
      if (mine.prompt_logprobs) part->output = StepOutputKind::kSampleAndPromptLogprobs;
    } else if (mine.prompt_logprobs) {
      part->output = StepOutputKind::kPromptLogprobs;
    }
    if (sequence->num_ids() + sequence->samples_pending < sequence->ids_max) {
      prefilling_.erase(sequence->arrival);
      sequence->phase = Sequence::Phase::kDecode;
      groups_->Add(sequence);
    }
  } else if (mine.prompt_logprobs) {
    part->output = StepOutputKind::kPromptLogprobs;
    part->next_token = sequence->ids[static_cast<size_t>(end)];
  }
  CachePages(sequence);
  may_admit_ = true;  // a follower may find enough now
  return true;
}

std::optional<Step> Scheduler::Send(Step step, InFlight record, SchedulerTime now) {
  if (step.sequences.empty()) return std::nullopt;
  step.id = next_step_++;
  record.id = step.id;
  for (const Part& part : record.parts) {
    if (!part.sequence->first_step_at) part.sequence->first_step_at = now;
  }
  if (record.group >= 0) {
    groups_->StepSent(record.group, step.id);
  } else {
    ++prefill_in_flight_;
    groups_->ChunkSent();
  }
  in_flight_.push_back(std::move(record));
  return step;
}

}  // namespace packtrain

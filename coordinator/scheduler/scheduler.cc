#include "coordinator/scheduler/scheduler.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_format.h"
#include "common/base/check.h"

namespace packtrain {
namespace {

double MillisBetween(SchedulerTime from, SchedulerTime to) {
  return std::chrono::duration<double, std::milli>(to - from).count();
}

TokenEvent ToEvent(const std::vector<TokenLogprob>& entries) {
  TokenEvent event{.id = entries.front().id, .logprob = entries.front().logprob, .top = {}};
  for (size_t i = 1; i < entries.size(); ++i) {
    event.top.emplace_back(entries[i].id, entries[i].logprob);
  }
  return event;
}

// Losses that a sequence may see without a new token between them; then it is given up, as it may
// be the cause.
constexpr int kLossesMax = 4;

// Positions that one sequence can have at most.
int ContextOf(const PipelineLimits& limits) {
  const int64_t positions = int64_t{limits.num_pages} * kPagePositions;
  return static_cast<int>(std::min<int64_t>(limits.context_length, positions));
}

}  // namespace

Scheduler::Scheduler(SchedulerOptions options) : options_(std::move(options)) {}

absl::Status Scheduler::CheckRequest(const GenerationRequest& request,
                                     const PipelineLimits& limits) {
  const int context = ContextOf(limits);
  if (request.prompt.empty()) return absl::InvalidArgumentError("the prompt has no tokens");
  if (static_cast<int64_t>(request.prompt.size()) >= context) {
    return absl::InvalidArgumentError(
        absl::StrFormat("the prompt has %d tokens; this deployment's context of %d leaves room for "
                        "a prompt of at most %d",
                        request.prompt.size(), context, context - 1));
  }
  if (request.max_tokens < 0) {
    return absl::InvalidArgumentError(
        absl::StrFormat("max_tokens is %d; it must be at least 0", request.max_tokens));
  }
  return absl::OkStatus();
}

void Scheduler::OnPipelineReady(const PipelineLimits& limits, SchedulerTime now) {
  CHECK(in_flight_.empty() && !up_);
  limits_ = limits;
  EmptyPipeline();
  up_ = true;
  may_admit_ = true;
  std::vector<Sequence*> too_long;
  for (const auto& [arrival, sequence] : waiting_) {
    sequence->ids_max = std::min(sequence->ids_max, ContextOf(limits));
    if (sequence->num_ids() > sequence->ids_max) too_long.push_back(sequence);
  }
  for (Sequence* sequence : too_long) {
    Finish(sequence, FinishReason::kError,
           absl::UnavailableError("the workers came back with less memory for context"), now);
  }
}

void Scheduler::OnPipelineLost(SchedulerTime now) {
  if (up_) Lose(absl::UnavailableError("the workers were lost"));
  if (in_flight_.empty()) ReleaseAfterLoss(now);
}

void Scheduler::Lose(absl::Status failure) {
  up_ = false;
  failure_ = std::move(failure);
}

void Scheduler::EmptyPipeline() {
  slots_.assign(static_cast<size_t>(limits_.num_slots), nullptr);
  groups_ = std::make_unique<DecodeGroups>(limits_.num_stages);
  pool_ = std::make_unique<PagePool>(limits_.num_pages);
  cache_ = std::make_unique<PrefixCache>(pool_.get(), limits_.num_snapshots);
  prefilling_.clear();
}

void Scheduler::Submit(RequestId id, GenerationRequest request,
                       std::shared_ptr<GenerationSink> sink, SchedulerTime now) {
  auto sequence = std::make_unique<Sequence>();
  sequence->id = id;
  sequence->arrival = next_arrival_++;
  sequence->sink = std::move(sink);
  sequence->ids = request.prompt;
  const int64_t wanted = static_cast<int64_t>(request.prompt.size()) + request.max_tokens;
  sequence->ids_max = static_cast<int>(std::min<int64_t>(wanted, ContextOf(limits_)));
  sequence->request = std::move(request);
  sequence->submitted_at = now;
  CHECK(by_id_.emplace(id, sequence.get()).second);
  waiting_.emplace(sequence->arrival, sequence.get());
  may_admit_ = true;
  Sequence* added = sequence.get();
  sequences_.emplace(sequence->arrival, std::move(sequence));
  if (absl::Status status = CheckRequest(added->request, limits_); !status.ok()) {
    Finish(added, FinishReason::kError, std::move(status), now);
  }
}

void Scheduler::Cancel(RequestId id, SchedulerTime now) {
  const auto it = by_id_.find(id);
  if (it == by_id_.end()) return;
  Finish(it->second, FinishReason::kError, absl::CancelledError("the request was cancelled"), now);
}

void Scheduler::FailAll(const absl::Status& status, SchedulerTime now) {
  std::vector<Sequence*> all;
  for (const auto& [arrival, sequence] : sequences_) {
    if (!sequence->finished) all.push_back(sequence.get());
  }
  for (Sequence* sequence : all) Finish(sequence, FinishReason::kError, status, now);
}

int Scheduler::num_running() const {
  return static_cast<int>(std::count_if(slots_.begin(), slots_.end(), [](const Sequence* s) {
    return s != nullptr && !s->finished;
  }));
}

DeploymentLoad Scheduler::load() const {
  DeploymentLoad load;
  load.requests_running = num_running();
  load.requests_waiting = num_waiting();
  load.slots = limits_.num_slots;
  load.slots_used = static_cast<int>(
      std::count_if(slots_.begin(), slots_.end(), [](const Sequence* s) { return s != nullptr; }));
  if (pool_ != nullptr) {
    load.kv_pages = pool_->size();
    load.kv_pages_used = pool_->size() - pool_->num_available();
    load.kv_pages_cached = pool_->num_idle();
  }
  load.preemptions = num_preemptions_;
  return load;
}

absl::Status Scheduler::CheckOutput(const Part& part, const SequenceOutput* output) const {
  if (!part.samples && !part.prompt_logprobs) return absl::OkStatus();
  if (output == nullptr) {
    return absl::InternalError(
        absl::StrFormat("the last stage sent no output for slot %d", part.sequence->slot));
  }
  if (part.samples && (output->token < 0 || output->token >= options_.vocab_size)) {
    return absl::InternalError(
        absl::StrFormat("the last stage sampled token %d for slot %d; the vocabulary has %d",
                        output->token, part.sequence->slot, options_.vocab_size));
  }
  for (const std::vector<TokenLogprob>& entries : output->prompt) {
    if (entries.empty()) return absl::InternalError("a prompt token came without log-probability");
  }
  return absl::OkStatus();
}

void Scheduler::OnResult(const StepResult& result, SchedulerTime now) {
  CHECK_MSG(!in_flight_.empty() && in_flight_.front().id == result.id,
            "results come once per step and in order");
  const InFlight record = std::move(in_flight_.front());
  in_flight_.pop_front();
  for (int32_t page : record.pages) pool_->RemoveUser(page);
  for (int32_t snapshot : record.snapshots) cache_->UnpinSnapshot(snapshot);
  if (record.group >= 0) {
    groups_->StepReturned(record.group, result.times.interval);
  } else {
    --prefill_in_flight_;
  }

  std::vector<const SequenceOutput*> outputs(slots_.size(), nullptr);
  for (const SequenceOutput& output : result.outputs) {
    if (output.slot >= 0 && output.slot < limits_.num_slots) {
      outputs[static_cast<size_t>(output.slot)] = &output;
    }
  }
  absl::Status status = result.status;
  for (const Part& part : record.parts) {
    if (!status.ok()) break;
    status = CheckOutput(part, outputs[static_cast<size_t>(part.sequence->slot)]);
  }
  // After one failed step nothing that follows can be relied on, whatever it says.
  if (up_ && !status.ok()) Lose(std::move(status));
  if (up_) {
    for (const Part& part : record.parts) {
      TakeOutput(part, outputs[static_cast<size_t>(part.sequence->slot)], now);
    }
  }
  // Only now: a sequence that has ended goes away with its last step.
  for (const Part& part : record.parts) --part.sequence->in_flight;
  if (!up_) {
    if (in_flight_.empty()) ReleaseAfterLoss(now);
    return;
  }
  for (const Part& part : record.parts) {
    Sequence* sequence = part.sequence;
    if (sequence->phase == Sequence::Phase::kDraining && sequence->in_flight == 0) {
      Release(sequence);
    } else if (!sequence->snapshots.empty()) {
      CachePages(sequence);
    }
  }
}

void Scheduler::TakeOutput(const Part& part, const SequenceOutput* output, SchedulerTime now) {
  Sequence* sequence = part.sequence;
  if (part.samples) --sequence->samples_pending;
  if (sequence->finished) return;
  if (part.prompt_logprobs) {
    for (const auto& entries : output->prompt) {
      sequence->prompt_logprobs.push_back(ToEvent(entries));
    }
  }
  if (part.ends_prefill && !sequence->prompt_done) {
    sequence->prompt_done = true;
    sequence->first_token_at = now;
    sequence->last_token_at = now;
    PromptResult prompt{.cached_tokens = sequence->cached_tokens, .prompt_logprobs = {}};
    if (part.prompt_logprobs) {
      prompt.prompt_logprobs.push_back({.id = sequence->ids.front(), .logprob = 0, .top = {}});
      std::move(sequence->prompt_logprobs.begin(), sequence->prompt_logprobs.end(),
                std::back_inserter(prompt.prompt_logprobs));
      sequence->prompt_logprobs.clear();
    }
    sequence->sink->OnPromptDone(std::move(prompt));
  }
  if (part.samples) {
    TakeToken(sequence, *output, now);
  } else if (part.ends_prefill) {
    Finish(sequence, FinishReason::kLength, absl::OkStatus(), now);
  }
}

void Scheduler::TakeToken(Sequence* sequence, const SequenceOutput& output, SchedulerTime now) {
  sequence->ids.push_back(output.token);
  sequence->losses = 0;
  sequence->last_token_at = now;
  TokenEvent event{.id = output.token, .logprob = output.logprob, .top = {}};
  for (const TokenLogprob& entry : output.top) event.top.emplace_back(entry.id, entry.logprob);
  sequence->sink->OnToken(std::move(event));
  if (!sequence->request.ignore_eos && options_.is_end_of_generation(output.token)) {
    Finish(sequence, FinishReason::kStop, absl::OkStatus(), now);
  } else if (sequence->num_ids() >= sequence->ids_max) {
    Finish(sequence, FinishReason::kLength, absl::OkStatus(), now);
  }
}

void Scheduler::Finish(Sequence* sequence, FinishReason reason, absl::Status status,
                       SchedulerTime now) {
  sequence->finished = true;
  ++num_finished_;
  by_id_.erase(sequence->id);
  GenerationResult result{.reason = reason, .status = std::move(status)};
  result.queued_ms = MillisBetween(sequence->submitted_at, sequence->first_step_at.value_or(now));
  if (sequence->first_step_at) {
    result.prompt_ms =
        MillisBetween(*sequence->first_step_at, sequence->first_token_at.value_or(now));
  }
  if (sequence->first_token_at) {
    result.decode_ms = MillisBetween(*sequence->first_token_at, sequence->last_token_at);
    result.prompt_evaluated = sequence->prompt_size() - sequence->cached_tokens;
  }
  sequence->sink->OnFinish(std::move(result));
  sequence->sink.reset();
  if (sequence->phase == Sequence::Phase::kWaiting) {
    Erase(sequence);
  } else if (sequence->active()) {
    Drain(sequence);
  }
}

// The sequence leaves its slot as soon as nothing of it is in flight.
void Scheduler::Drain(Sequence* sequence) {
  if (sequence->phase == Sequence::Phase::kDecode) groups_->Remove(sequence);
  prefilling_.erase(sequence->arrival);
  sequence->phase = Sequence::Phase::kDraining;
  if (sequence->in_flight == 0) Release(sequence);
}

void Scheduler::Release(Sequence* sequence) {
  CHECK(sequence->phase == Sequence::Phase::kDraining && sequence->in_flight == 0);
  // A page to be copied into holds nothing before the first step.
  if (sequence->begun) CachePages(sequence);
  for (const auto& [position, snapshot] : sequence->snapshots) cache_->ReleaseSnapshot(snapshot);
  for (int32_t page : sequence->pages) pool_->RemoveUser(page);
  if (sequence->copy_from >= 0) pool_->RemoveUser(sequence->copy_from);
  if (sequence->restore_snapshot >= 0) cache_->UnpinSnapshot(sequence->restore_snapshot);
  slots_[static_cast<size_t>(sequence->slot)] = nullptr;
  may_admit_ = true;
  if (sequence->finished) {
    Erase(sequence);
  } else {
    Requeue(sequence);
  }
}

// Gives what the pages of a sequence hold to the prefix cache. Positions beyond the known ids were
// computed ahead and may be of a token that the sequence never had.
void Scheduler::CachePages(Sequence* sequence) {
  const int valid = std::min(sequence->computed, sequence->num_ids());
  const std::span<const TokenId> ids(sequence->ids.data(), static_cast<size_t>(valid));
  cache_->Insert(ids, sequence->pages);
  std::erase_if(sequence->snapshots, [&](const auto& entry) {
    const auto& [position, snapshot] = entry;
    if (position > valid) return false;
    cache_->AttachSnapshot(ids.first(static_cast<size_t>(position)), snapshot);
    return true;
  });
}

// Back to waiting, at the place its age gives it; the journal is all that stays.
void Scheduler::Requeue(Sequence* sequence) {
  sequence->phase = Sequence::Phase::kWaiting;
  sequence->slot = -1;
  sequence->group = -1;
  sequence->pages.clear();
  sequence->pages_sent = 0;
  sequence->computed = 0;
  sequence->begun = false;
  sequence->in_flight = 0;
  sequence->samples_pending = 0;
  sequence->copy_from = -1;
  sequence->restore_snapshot = -1;
  sequence->snapshots.clear();
  sequence->prompt_logprobs.clear();
  waiting_.emplace(sequence->arrival, sequence);
}

// All that the stages had is gone, and no step is in flight any more.
void Scheduler::ReleaseAfterLoss(SchedulerTime now) {
  const std::vector<Sequence*> running = slots_;
  EmptyPipeline();
  for (Sequence* sequence : running) {
    if (sequence == nullptr) continue;
    if (sequence->finished) {
      Erase(sequence);
      continue;
    }
    Requeue(sequence);
    if (++sequence->losses >= kLossesMax) {
      Finish(sequence, FinishReason::kError, failure_, now);
    }
  }
}

void Scheduler::Erase(Sequence* sequence) {
  waiting_.erase(sequence->arrival);
  sequences_.erase(sequence->arrival);
}

absl::Status Scheduler::CheckIntegrity() const {
  if (pool_ == nullptr) return absl::OkStatus();
  if (absl::Status status = cache_->CheckIntegrity(); !status.ok()) return status;
  std::vector<int> users(static_cast<size_t>(pool_->size()), 0);
  size_t snapshots = 0;
  size_t in_slots = 0;
  for (size_t slot = 0; slot < slots_.size(); ++slot) {
    const Sequence* sequence = slots_[slot];
    if (sequence == nullptr) continue;
    ++in_slots;
    if (sequence->slot != static_cast<int>(slot)) {
      return absl::InternalError(absl::StrFormat("slot %d holds another slot's sequence", slot));
    }
    for (int32_t page : sequence->pages) ++users[static_cast<size_t>(page)];
    if (sequence->copy_from >= 0) ++users[static_cast<size_t>(sequence->copy_from)];
    snapshots += sequence->snapshots.size();
  }
  for (const InFlight& record : in_flight_) {
    for (int32_t page : record.pages) ++users[static_cast<size_t>(page)];
  }
  for (int32_t page = 0; page < pool_->size(); ++page) {
    if (pool_->users(page) != users[static_cast<size_t>(page)]) {
      return absl::InternalError(absl::StrFormat("page %d has %d users; counted %d", page,
                                                 pool_->users(page),
                                                 users[static_cast<size_t>(page)]));
    }
  }
  if (static_cast<size_t>(cache_->num_snapshots_unattached()) != snapshots) {
    return absl::InternalError("a snapshot belongs to nobody");
  }
  if (in_slots + waiting_.size() != sequences_.size()) {
    return absl::InternalError("a sequence is neither waiting nor in a slot");
  }
  if (idle() && pool_->num_available() != pool_->size()) {
    return absl::InternalError(absl::StrFormat("idle, and %d of %d pages are in use",
                                               pool_->size() - pool_->num_available(),
                                               pool_->size()));
  }
  return absl::OkStatus();
}

}  // namespace packtrain

#include "worker/engine/engine.h"

#include <algorithm>
#include <atomic>
#include <deque>
#include <iterator>
#include <thread>
#include <utility>

#include "absl/strings/str_format.h"
#include "common/base/check.h"
#include "common/base/mutex.h"
#include "common/base/status_macros.h"
#include "worker/engine/bundle_sender.h"
#include "worker/engine/slots.h"
#include "worker/engine/turn_cpu.h"

namespace packtrain {
namespace {

using Clock = std::chrono::steady_clock;

// Ids of tokens that only the first stage could know, in the order of the step's sequences.
constexpr std::string_view kForwardedTokens = "forwarded_tokens";
// On the tokens link: [n, 2] of (slot, token).
constexpr std::string_view kSampledTokens = "sampled_tokens";
// StepTimes so far, as an array of StepPart.
constexpr std::string_view kStepTimes = "step_times";
enum StepPart : size_t {
  kExpertsUs,
  kComputeUs,
  kControlUs,
  kExpertsRead,
  kExpertsRequests,
  kGpuOperations,
  kStepParts,
};

// How long the result of a quick step may wait so that several are reported at once: far below what
// a reader of the text can see, and several steps of a small model.
constexpr std::chrono::milliseconds kResultsHeld(6);

int32_t Microseconds(Clock::duration time) {
  return static_cast<int32_t>(std::chrono::duration_cast<std::chrono::microseconds>(time).count());
}

// Every sequence goes on by one token.
bool IsDecode(const Step& step) {
  return std::all_of(step.sequences.begin(), step.sequences.end(), [](const StepSequence& s) {
    return s.num_tokens() == 1 && s.output == StepOutputKind::kSample && !s.begin;
  });
}

// Every sequence goes on with the token of the step before: until this one ends, nothing else can
// run.
bool FollowsDirectly(const Step& step) {
  return std::all_of(step.sequences.begin(), step.sequences.end(), [&](const StepSequence& s) {
    return s.tokens.empty() && s.token_from_step + 1 == step.id;
  });
}

void AddTensor(Bundle* bundle, std::string_view name, const std::vector<int32_t>& values,
               uint32_t cols) {
  BundleTensor* t = bundle->Shape(bundle->tensors.size(), name, ElementType::kI32,
                                  static_cast<uint32_t>(values.size()) / cols, cols);
  std::memcpy(t->data.data(), values.data(), t->data.size());
}

}  // namespace

class Engine::Impl {
 public:
  Impl(Stage* stage, ExpertsClient* experts, const EngineOptions& options, EngineLinks links,
       SamplingFunctions sampling, EngineCallbacks callbacks)
      : stage_(stage),
        experts_(experts),
        options_(options),
        upstream_(std::move(links.upstream)),
        tokens_from_(std::move(links.tokens_from)),
        sampling_(std::move(sampling)),
        callbacks_(std::move(callbacks)),
        slots_(options.num_slots) {
    CHECK((upstream_ == nullptr) == options.first);
    CHECK((links.downstream == nullptr) == options.last);
    CHECK((tokens_from_ != nullptr) == (options.first && !options.last));
    CHECK((links.tokens_to != nullptr) == (options.last && !options.first));
    const bool downstream = links.downstream != nullptr;
    auto out = downstream ? std::move(links.downstream) : std::move(links.tokens_to);
    if (out != nullptr) {
      sender_ = std::make_unique<BundleSender>(
          std::move(out), options.step_timeout, options.direct_from_bytes,
          [this, downstream](const absl::Status& status) {
            ReportLink(downstream ? "downstream" : "tokens_to", status);
          });
    }
    thread_ = std::thread([this] { RunSteps(); });
  }

  ~Impl() {
    {
      MutexLock lock(&mutex_);
      stop_ = true;
      changed_.NotifyAll();
    }
    stopping_ = true;
    if (upstream_ != nullptr) upstream_->Close();
    if (tokens_from_ != nullptr) tokens_from_->Close();
    thread_.join();
    sender_ = nullptr;
  }

  void Submit(std::vector<Step> steps) {
    MutexLock lock(&mutex_);
    std::move(steps.begin(), steps.end(), std::back_inserter(queue_));
    changed_.NotifyAll();
  }

  void Cancel(uint64_t through_step) {
    uint64_t current = cancelled_.load();
    while (current < through_step && !cancelled_.compare_exchange_weak(current, through_step)) {
    }
  }

  absl::Status Drain(Clock::time_point deadline) {
    MutexLock lock(&mutex_);
    while (!queue_.empty() || busy_) {
      if (!changed_.WaitUntil(&mutex_, deadline) && Clock::now() >= deadline) {
        return absl::DeadlineExceededError("steps are still in flight");
      }
    }
    return absl::OkStatus();
  }

 private:
  void RunSteps() {
    TurnCpu turn_cpu(options_.turn_cpu);
    while (true) {
      Step step;
      {
        MutexLock lock(&mutex_);
        busy_ = false;
        changed_.NotifyAll();
        const Clock::time_point begin = Clock::now();
        while (queue_.empty() && !stop_) changed_.Wait(&mutex_);
        waited_for_step_ = Clock::now() - begin;
        if (stop_) return;
        step = std::move(queue_.front());
        queue_.pop_front();
        busy_ = true;
      }
      turn_cpu.Begin(FollowsDirectly(step), Clock::now());
      RunStep(step);
    }
  }

  void RunStep(const Step& step) {
    StepResult result;
    result.id = step.id;
    result.status = step.id <= cancelled_.load() ? absl::CancelledError("step was cancelled")
                                                 : Compute(step, &result);
    if (!result.status.ok()) {
      slots_.Fail(step, result.status);
      result.outputs.clear();
      if (sender_ != nullptr) sender_->SendError(options_.epoch, step.id, result.status);
    }
    if (!options_.last) return;
    MeasureInterval(step, &result);
    if (stopping_) return;
    results_.push_back(std::move(result));
    if (MaySoonReportMore()) return;
    last_reported_ = last_end_;
    callbacks_.results(std::exchange(results_, {}));
  }

  // Whether a decode step is queued whose result will be there before these have waited too long.
  bool MaySoonReportMore() {
    const float interval = results_.back().times.interval;
    if (interval <= 0) return false;
    const std::chrono::microseconds next(static_cast<int64_t>(interval));
    if (last_end_ + next - last_reported_ > kResultsHeld) return false;
    MutexLock lock(&mutex_);
    return !queue_.empty() && IsDecode(queue_.front());
  }

  absl::Status Compute(const Step& step, StepResult* result) {
    for (const StepSequence& s : step.sequences) RETURN_IF_ERROR(slots_.Apply(s));
    if (!options_.first) RETURN_IF_ERROR(ReceiveInput(step));
    RETURN_IF_ERROR(ResolveTokens(step));
    const Ubatch ubatch = MakeUbatch(step);
    if (experts_ != nullptr) experts_->BeginStep(step.id);
    const Clock::time_point begin = Clock::now();
    if (options_.last) {
      RETURN_IF_ERROR(stage_->Run(ubatch, input_, &unused_));
      Sample(step, result);
      result->times = Times(TimesSince(begin));
      return absl::OkStatus();
    }
    Bundle* out = sender_->Acquire();
    // The stage finds the bundle as it left it, without what was added behind its tensors.
    std::erase_if(out->tensors, [](const BundleTensor& t) {
      return t.name == kForwardedTokens || t.name == kStepTimes;
    });
    const absl::Status status = stage_->Run(ubatch, input_, out);
    out->epoch = options_.epoch;
    out->step_id = step.id;
    if (!status.ok()) {
      sender_->Release(out);
      return status;
    }
    if (!forwarded_.empty()) AddTensor(out, kForwardedTokens, forwarded_, 1);
    AddTensor(out, kStepTimes, TimesSince(begin), kStepParts);
    sender_->Send(out);
    return absl::OkStatus();
  }

  // kStepTimes up to and with this stage, which began its part at `begin`.
  std::vector<int32_t> TimesSince(Clock::time_point begin) const {
    std::vector<int32_t> times(kStepParts);
    times[kControlUs] = Microseconds(waited_for_step_);
    const BundleTensor* t = options_.first ? nullptr : input_.Find(kStepTimes);
    if (t != nullptr && t->type == ElementType::kI32 && t->rows == 1 && t->cols == kStepParts)
      times.assign(t->i32(), t->i32() + kStepParts);
    const int32_t waited = experts_ == nullptr ? 0 : Microseconds(experts_->waited());
    const ExpertsUse used = experts_ == nullptr ? ExpertsUse() : experts_->used();
    times[kExpertsUs] += waited;
    times[kComputeUs] += Microseconds(Clock::now() - begin) - waited;
    times[kExpertsRead] += static_cast<int32_t>(used.experts);
    times[kExpertsRequests] += static_cast<int32_t>(used.requests);
    times[kGpuOperations] += stage_->gpu_operations();
    return times;
  }

  static StepTimes Times(const std::vector<int32_t>& parts) {
    StepTimes times;
    times.experts = static_cast<float>(parts[kExpertsUs]);
    times.compute = static_cast<float>(parts[kComputeUs]);
    times.control = static_cast<float>(parts[kControlUs]);
    if (parts[kExpertsRequests] > 0) {
      times.experts_read =
          static_cast<float>(parts[kExpertsRead]) / static_cast<float>(parts[kExpertsRequests]);
    }
    times.gpu_operations = static_cast<float>(parts[kGpuOperations]);
    return times;
  }

  void MeasureInterval(const Step& step, StepResult* result) {
    const Clock::time_point now = Clock::now();
    const bool decodes = result->status.ok() && IsDecode(step);
    if (decodes && step.id == last_decode_ + 1)
      result->times.interval = static_cast<float>(Microseconds(now - last_end_));
    last_decode_ = decodes ? step.id : 0;
    last_end_ = now;
  }

  // Takes the bundle of this step; those of steps that were given up here are dropped.
  absl::Status ReceiveInput(const Step& step) {
    const Clock::time_point deadline = Clock::now() + options_.step_timeout;
    while (!held_ || input_.step_id < step.id) {
      held_ = false;
      const absl::Status status = upstream_->Receive(&input_, deadline);
      if (!status.ok()) return LinkError("upstream", status);
      held_ = true;
    }
    if (input_.step_id > step.id) {
      return absl::InternalError(absl::StrFormat("step %d: the previous stage skipped it for %d",
                                                 step.id, input_.step_id));
    }
    held_ = false;
    return input_.error;
  }

  // Takes messages of sampled tokens until that of `step_id` is in; with a deadline of now, those
  // that have come.
  absl::Status ReceiveTokens(uint64_t step_id, Clock::time_point deadline) {
    while (tokens_through_ < step_id) {
      const absl::Status status = tokens_from_->Receive(&sampled_, deadline);
      if (!status.ok()) return status;
      tokens_through_ = sampled_.step_id;
      const BundleTensor* t = sampled_.Find(kSampledTokens);
      if (t == nullptr || t->type != ElementType::kI32 || t->cols != 2) continue;
      for (uint32_t i = 0; i < t->rows; ++i) {
        const int32_t slot = t->i32()[2 * i];
        if (slot < 0 || slot >= slots_.size()) continue;
        slots_[slot].sampled_step = sampled_.step_id;
        slots_[slot].sampled_token = t->i32()[2 * i + 1];
      }
    }
    return absl::OkStatus();
  }

  // Appends the step's tokens to its slots' ids, forwarded ones included.
  absl::Status ResolveTokens(const Step& step) {
    if (tokens_from_ != nullptr) {
      // Also when nothing is needed: the last stage must never find the link full.
      const absl::Status status = ReceiveTokens(UINT64_MAX, Clock::now());
      if (!absl::IsDeadlineExceeded(status)) return LinkError("tokens_from", status);
    }
    forwarded_.clear();
    size_t taken = 0;
    for (const StepSequence& s : step.sequences) {
      Slot& slot = slots_[s.slot];
      if (!s.tokens.empty()) {
        slot.ids.insert(slot.ids.end(), s.tokens.begin(), s.tokens.end());
        continue;
      }
      TokenId token = -1;
      if (options_.first) {
        ASSIGN_OR_RETURN(token, SampledToken(s));
      } else {
        const BundleTensor* t = input_.Find(kForwardedTokens);
        if (t == nullptr || t->type != ElementType::kI32 || taken >= t->rows || t->cols != 1) {
          return absl::InternalError(
              absl::StrFormat("step %d: no forwarded token for slot %d", step.id, s.slot));
        }
        token = t->i32()[taken++];
      }
      forwarded_.push_back(token);
      slot.ids.push_back(token);
    }
    return absl::OkStatus();
  }

  absl::StatusOr<TokenId> SampledToken(const StepSequence& s) {
    if (tokens_from_ != nullptr) {
      const absl::Status status =
          ReceiveTokens(s.token_from_step, Clock::now() + options_.step_timeout);
      if (!status.ok()) return LinkError("tokens_from", status);
    }
    const Slot& slot = slots_[s.slot];
    if (slot.sampled_step != s.token_from_step || slot.sampled_token < 0) {
      return absl::FailedPreconditionError(
          absl::StrFormat("slot %d: step %d sampled no token for it", s.slot, s.token_from_step));
    }
    return slot.sampled_token;
  }

  Ubatch MakeUbatch(const Step& step) {
    sequences_.clear();
    copies_.clear();
    Ubatch ubatch;
    ubatch.step_id = step.id;
    for (const StepSequence& s : step.sequences) {
      const Slot& slot = slots_[s.slot];
      const size_t rows = static_cast<size_t>(s.num_tokens());
      UbatchSequence u;
      u.slot = s.slot;
      u.start = s.start;
      u.rows = s.num_tokens();
      u.tokens = std::span(slot.ids).last(rows);
      u.pages = slot.pages;
      u.reset = s.begin.has_value();
      u.restore_snapshot = s.restore_snapshot;
      u.save_snapshot = s.save_snapshot;
      u.logits_all = s.output == StepOutputKind::kPromptLogprobs ||
                     s.output == StepOutputKind::kSampleAndPromptLogprobs;
      u.logits_last = !u.logits_all && s.output == StepOutputKind::kSample;
      u.sampling = &slot.start.sampling;
      u.num_ids = static_cast<int32_t>(slot.ids.size());
      u.top_logprobs = s.top_logprobs;
      sequences_.push_back(u);
      copies_.insert(copies_.end(), s.page_copies.begin(), s.page_copies.end());
      ubatch.rows += u.rows;
    }
    ubatch.sequences = sequences_;
    ubatch.page_copies = copies_;
    return ubatch;
  }

  void Sample(const Step& step, StepResult* result) {
    const std::span<const float> logits = stage_->logits();
    size_t rows = 0;
    for (const UbatchSequence& u : sequences_) {
      rows += u.logits_all ? static_cast<size_t>(u.rows) : (u.logits_last ? 1 : 0);
    }
    std::vector<int32_t> sampled;
    const size_t vocab = rows == 0 ? 0 : logits.size() / rows;
    size_t row = 0;
    for (size_t i = 0; i < step.sequences.size(); ++i) {
      const StepSequence& s = step.sequences[i];
      if (s.output == StepOutputKind::kNone) continue;
      Slot& slot = slots_[s.slot];
      SequenceOutput output;
      const size_t count = sequences_[i].logits_all ? static_cast<size_t>(s.num_tokens()) : 1;
      const std::span<const float> own = logits.subspan(row * vocab, count * vocab);
      row += count;
      if (s.output != StepOutputKind::kPromptLogprobs) {
        const SequenceOutput* sampled_by_stage = stage_->sampled(i);
        output = sampled_by_stage != nullptr
                     ? *sampled_by_stage
                     : sampling_.sample(own.last(vocab), slot.start, slot.ids, s.top_logprobs);
        slot.sampled_step = step.id;
        slot.sampled_token = output.token;
        sampled.insert(sampled.end(), {s.slot, output.token});
      }
      output.slot = s.slot;
      if (sequences_[i].logits_all) Score(s, slot, own, vocab, &output);
      result->outputs.push_back(std::move(output));
    }
    if (sender_ != nullptr && !sampled.empty()) {
      Bundle* tokens = sender_->Acquire();
      tokens->epoch = options_.epoch;
      tokens->step_id = step.id;
      tokens->tensors.clear();
      AddTensor(tokens, kSampledTokens, sampled, 2);
      sender_->Send(tokens);
    }
  }

  void Score(const StepSequence& s, const Slot& slot, std::span<const float> logits, size_t vocab,
             SequenceOutput* output) {
    const size_t count = static_cast<size_t>(s.num_tokens());
    for (size_t i = 0; i < count; ++i) {
      const size_t next = static_cast<size_t>(s.start) + i + 1;
      const TokenId token = next < slot.ids.size() ? slot.ids[next] : s.next_token;
      if (token < 0) break;
      output->prompt.push_back(
          sampling_.score(logits.subspan(i * vocab, vocab), token, std::max(s.top_logprobs, 0)));
    }
  }

  // Adds which link it was; a break, other than by our own end, is reported.
  absl::Status LinkError(std::string_view what, const absl::Status& status) {
    if (!absl::IsDeadlineExceeded(status)) ReportLink(what, status);
    return absl::Status(status.code(),
                        absl::StrFormat("link '%s': %s", what, std::string(status.message())));
  }
  void ReportLink(std::string_view what, const absl::Status& status) {
    if (!stopping_) callbacks_.link_down(what, status);
  }

  Stage* const stage_;
  ExpertsClient* const experts_;
  const EngineOptions options_;
  const std::unique_ptr<ReceiveLink> upstream_;
  const std::unique_ptr<ReceiveLink> tokens_from_;
  const SamplingFunctions sampling_;
  const EngineCallbacks callbacks_;
  std::atomic<bool> stopping_{false};
  std::unique_ptr<BundleSender> sender_;

  // The engine thread's own.
  SlotTable slots_;
  Bundle input_, sampled_, unused_;
  bool held_ = false;  // input_ belongs to a step that has not come yet
  uint64_t tokens_through_ = 0;
  std::vector<int32_t> forwarded_;
  std::vector<UbatchSequence> sequences_;
  std::vector<PageCopy> copies_;
  Clock::duration waited_for_step_{0};
  uint64_t last_decode_ = 0;  // the last step, if it was one of decode
  Clock::time_point last_end_;
  Clock::time_point last_reported_;
  std::vector<StepResult> results_;  // not reported yet

  std::atomic<uint64_t> cancelled_{0};
  Mutex mutex_;
  CondVar changed_;
  std::deque<Step> queue_ ABSL_GUARDED_BY(mutex_);
  bool busy_ ABSL_GUARDED_BY(mutex_) = false;
  bool stop_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

Engine::Engine(Stage* stage, ExpertsClient* experts, const EngineOptions& options,
               EngineLinks links, SamplingFunctions sampling, EngineCallbacks callbacks)
    : impl_(std::make_unique<Impl>(stage, experts, options, std::move(links), std::move(sampling),
                                   std::move(callbacks))) {}
Engine::~Engine() = default;
void Engine::Submit(std::vector<Step> steps) { impl_->Submit(std::move(steps)); }
void Engine::Cancel(uint64_t through_step) { impl_->Cancel(through_step); }
absl::Status Engine::Drain(Clock::time_point deadline) { return impl_->Drain(deadline); }

}  // namespace packtrain

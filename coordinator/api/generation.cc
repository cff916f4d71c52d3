#include "coordinator/api/generation.h"

#include <algorithm>
#include <functional>
#include <variant>

#include "absl/strings/str_cat.h"
#include "common/base/mutex.h"
#include "coordinator/api/api_error.h"

namespace packtrain {
namespace {

// One request with many choices must not fill the queue alone.
constexpr size_t kInFlightMax = 8;

}  // namespace

// --- GenerationInbox -----------------------------------------------------------------------------

struct GenerationEvent {
  size_t choice = 0;
  std::variant<PromptResult, TokenEvent, GenerationResult> what;
};

// Carries events from the scheduler's thread to the I/O thread, many per wake-up. Once closed it
// drops them: the server may be gone by then.
class GenerationInbox {
 public:
  void Open(std::function<void()> wake) {
    MutexLock lock(&mutex_);
    wake_ = std::move(wake);
  }
  void Push(GenerationEvent event) {
    MutexLock lock(&mutex_);
    if (wake_ == nullptr) return;
    events_.push_back(std::move(event));
    if (events_.size() == 1) wake_();
  }
  std::vector<GenerationEvent> Take() {
    MutexLock lock(&mutex_);
    return std::exchange(events_, {});
  }
  void Close() {
    MutexLock lock(&mutex_);
    wake_ = nullptr;
    events_.clear();
  }

 private:
  Mutex mutex_;
  std::function<void()> wake_ ABSL_GUARDED_BY(mutex_);
  std::vector<GenerationEvent> events_ ABSL_GUARDED_BY(mutex_);
};

namespace {

class ChoiceSink : public GenerationSink {
 public:
  ChoiceSink(std::shared_ptr<GenerationInbox> inbox, size_t choice)
      : inbox_(std::move(inbox)), choice_(choice) {}
  void OnPromptDone(PromptResult result) override { inbox_->Push({choice_, std::move(result)}); }
  void OnToken(TokenEvent token) override { inbox_->Push({choice_, std::move(token)}); }
  void OnFinish(GenerationResult result) override { inbox_->Push({choice_, std::move(result)}); }

 private:
  const std::shared_ptr<GenerationInbox> inbox_;
  const size_t choice_;
};

std::string Event(const std::string& json) { return absl::StrCat("data: ", json, "\n\n"); }

}  // namespace

// --- Generation ----------------------------------------------------------------------------------

Generation::Generation(std::shared_ptr<HttpExchange> exchange, Deployment* deployment,
                       ApiMetrics* metrics, CompletionRequest request, bool starts_in_reasoning)
    : exchange_(std::move(exchange)),
      deployment_(deployment),
      metrics_(metrics),
      request_(std::move(request)),
      inbox_(std::make_shared<GenerationInbox>()),
      json_(request_, deployment->tokenizer(), deployment->info().name) {
  const size_t count = request_.prompts.size() * static_cast<size_t>(request_.n);
  choices_.reserve(count);
  for (size_t i = 0; i < count; ++i) {
    choices_.push_back({ChoiceAssembler({.tokenizer = &deployment->tokenizer(),
                                         .stop = request_.stop,
                                         .split_reasoning = request_.kind == CompletionKind::kChat,
                                         .starts_in_reasoning = starts_in_reasoning,
                                         .logprobs = request_.logprobs,
                                         .token_ids = request_.return_token_ids,
                                         .ignore_eos = request_.ignore_eos})});
  }
  for (const CompletionRequest::Prompt& prompt : request_.prompts) {
    usage_.prompt_tokens += static_cast<int>(prompt.ids.size());
  }
}

Generation::~Generation() { Stop(); }

const CompletionRequest::Prompt& Generation::PromptOf(size_t index) const {
  return request_.prompts[index / static_cast<size_t>(request_.n)];
}

GenerationRequest Generation::RequestFor(size_t index) const {
  GenerationRequest request;
  request.prompt = PromptOf(index).ids;
  request.sampling = request_.sampling;
  request.sampling.choice = static_cast<uint32_t>(index % static_cast<size_t>(request_.n));
  const int room = deployment_->info().context_length - static_cast<int>(request.prompt.size());
  request.max_tokens = std::min(room, request_.max_tokens.value_or(room));
  request.ignore_eos = request_.ignore_eos;
  request.last_turn_start = PromptOf(index).last_turn_start;
  request.logprobs = request_.logprobs;
  request.top_logprobs = request_.top_logprobs;
  request.prompt_logprobs = request_.echo && request_.logprobs;
  return request;
}

void Generation::Start() {
  if (exchange_->aborted()) return;
  inbox_->Open([weak = weak_from_this(), exchange = exchange_.get()] {
    exchange->Post([weak] {
      if (auto self = weak.lock(); self != nullptr) self->Drain();
    });
  });
  exchange_->OnAbort([self = shared_from_this()] {
    self->Stop();
    self->metrics_->CountReply(self->exchange_->request().path, 499);
  });
  if (absl::Status status = Submit(); !status.ok()) return Fail(status);
  if (request_.stream) {
    streaming_ = true;
    exchange_->StartStream("text/event-stream; charset=utf-8", ": ping\n\n");
  }
}

// Submits as many choices as may be in flight. When the queue is full the rest waits for one of
// ours to end; without one the request is refused.
absl::Status Generation::Submit() {
  while (submitted_ < choices_.size() && in_flight_ < kInFlightMax) {
    absl::StatusOr<RequestId> id = deployment_->Submit(
        RequestFor(submitted_), std::make_shared<ChoiceSink>(inbox_, submitted_));
    if (!id.ok()) {
      const bool later = in_flight_ > 0 && absl::IsResourceExhausted(id.status());
      return later ? absl::OkStatus() : id.status();
    }
    choices_[submitted_].request_id = *id;
    choices_[submitted_].in_flight = true;
    ++submitted_;
    ++in_flight_;
  }
  return absl::OkStatus();
}

void Generation::Drain() {
  for (GenerationEvent& event : inbox_->Take()) {
    if (done_) return;
    if (auto* prompt = std::get_if<PromptResult>(&event.what)) {
      OnPromptDone(event.choice, std::move(*prompt));
    } else if (auto* token = std::get_if<TokenEvent>(&event.what)) {
      OnToken(event.choice, *token);
    } else {
      OnFinish(event.choice, std::get<GenerationResult>(event.what));
    }
  }
  if (!done_ && streaming_) exchange_->Write(std::exchange(out_, ""));
}

void Generation::OnPromptDone(size_t index, PromptResult result) {
  timings_.cached_tokens += result.cached_tokens;
  if (index % static_cast<size_t>(request_.n) == 0) usage_.cached_tokens += result.cached_tokens;
  const CompletionRequest::Prompt& prompt = PromptOf(index);
  if (request_.echo) {
    choices_[index].assembler.AddEcho(
        prompt.is_ids ? deployment_->tokenizer().Decode(prompt.ids, /*show_special=*/true)
                      : prompt.text,
        std::move(result.prompt_logprobs));
  }
  if (streaming_ && request_.kind == CompletionKind::kChat) {
    out_ += Event(json_.FirstChunk(static_cast<int>(index), prompt.ids));
    choices_[index].first = false;
  }
}

void Generation::OnToken(size_t index, const TokenEvent& token) {
  Choice& choice = choices_[index];
  choice.assembler.Add(token);
  if (choice.assembler.stopped() && !choice.cancelled) {
    choice.cancelled = true;
    deployment_->Cancel(choice.request_id);
  }
  if (streaming_) StreamDelta(index, "");
}

void Generation::StreamDelta(size_t index, const std::string& finish_reason) {
  Choice& choice = choices_[index];
  const ChoiceDelta delta = choice.assembler.Take();
  const bool last = !finish_reason.empty() && finished_ == choices_.size();
  if (delta.empty() && finish_reason.empty()) return;
  const bool with_prompt = choice.first && request_.return_token_ids;
  choice.first = false;
  out_ += Event(json_.Chunk(static_cast<int>(index), delta, finish_reason,
                            with_prompt ? &PromptOf(index).ids : nullptr,
                            last && !request_.include_usage ? &timings_ : nullptr));
}

void Generation::OnFinish(size_t index, const GenerationResult& result) {
  Choice& choice = choices_[index];
  choice.in_flight = false;
  --in_flight_;
  if (result.reason == FinishReason::kError && !choice.cancelled) {
    return Fail(result.status.ok() ? absl::InternalError("the generation failed") : result.status);
  }
  ++finished_;
  choice.assembler.Finish();
  usage_.completion_tokens += choice.assembler.num_tokens();
  usage_.reasoning_tokens += choice.assembler.num_reasoning_tokens();
  timings_.queued_ms += result.queued_ms;
  timings_.prompt_ms += result.prompt_ms;
  timings_.decode_ms += result.decode_ms;
  timings_.prompt_evaluated += result.prompt_evaluated;
  timings_.decoded += choice.assembler.num_tokens();
  timings_.decode_steps += std::max(choice.assembler.num_tokens() - 1, 0);
  // A stop string may have been completed by the very last bytes.
  const bool stopped = choice.assembler.stopped() || result.reason == FinishReason::kStop;
  const std::string reason = stopped ? "stop" : "length";
  if (streaming_) {
    StreamDelta(index, reason);
  } else {
    json_.AddChoice(static_cast<int>(index), choice.assembler.Take(), reason, PromptOf(index).ids);
  }
  if (finished_ == choices_.size()) return Complete();
  if (absl::Status status = Submit(); !status.ok()) Fail(status);
}

void Generation::Complete() {
  Stop();
  metrics_->CountTokens(deployment_->info().name, usage_.prompt_tokens, usage_.cached_tokens,
                        usage_.completion_tokens);
  metrics_->CountReply(exchange_->request().path, 200);
  if (!streaming_) return exchange_->Reply({.body = json_.Whole(usage_, timings_)});
  if (request_.include_usage) out_ += Event(json_.UsageChunk(usage_, timings_));
  exchange_->Write(out_ + "data: [DONE]\n\n");
  exchange_->EndStream();
}

void Generation::Fail(const absl::Status& status) {
  Stop();
  metrics_->CountReply(exchange_->request().path, HttpStatus(status));
  if (!streaming_) {
    return exchange_->Reply(ErrorReply(status, deployment_->RetryAfterSeconds()));
  }
  exchange_->Write(out_ + Event(ErrorJson(status)) + "data: [DONE]\n\n");
  exchange_->EndStream();
}

// Ends the deployment's work for this request.
void Generation::Stop() {
  done_ = true;
  inbox_->Close();
  for (Choice& choice : choices_) {
    if (choice.in_flight) deployment_->Cancel(choice.request_id);
    choice.in_flight = false;
  }
}

}  // namespace packtrain

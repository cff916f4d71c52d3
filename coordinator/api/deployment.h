#pragma once

// What the HTTP API needs of a deployment: one model with its tokenizer, chat template and queue.
// The scheduler implements it; tests script it.

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/model/sampling.h"
#include "common/model/step.h"
#include "coordinator/tokenizer/chat_template.h"
#include "coordinator/tokenizer/tokenizer.h"

namespace packtrain {

// One output wanted for one prompt. Stop strings are not in here: the API matches them and cancels.
struct GenerationRequest {
  std::vector<TokenId> prompt;  // 1 .. context_length - 1 ids, each < vocab_size
  SamplingParams sampling;
  int max_tokens = 0;       // >= 0; 0 only evaluates the prompt
  bool ignore_eos = false;  // end-of-generation tokens are tokens like others
  bool logprobs = false;    // fill TokenEvent::logprob
  int top_logprobs = 0;     // 0 .. 20: how many alternatives to report; needs `logprobs`
  // Prompt tokens in front of the last user turn: where the next request of the same chat may part
  // from this one. Recurrent models keep a snapshot there; 0: not known.
  int last_turn_start = 0;
  bool prompt_logprobs = false;  // report log-probabilities of the prompt's tokens as well
};

// One token with its log-probability before temperature, penalties and truncation.
struct TokenEvent {
  TokenId id = 0;
  float logprob = 0.0F;                        // valid if asked for
  std::vector<std::pair<TokenId, float>> top;  // most likely first
};

struct PromptResult {
  int cached_tokens = 0;  // leading prompt tokens whose KV cache was reused
  // If asked for: one entry per prompt token. The first token has no log-probability; its
  // `logprob` is 0 and its `top` is empty.
  std::vector<TokenEvent> prompt_logprobs;
};

enum class FinishReason {
  kStop,    // the last token was an end-of-generation token (and ignore_eos is off)
  kLength,  // max_tokens or the context is used up
  kError,   // see GenerationResult::status; also after Cancel (status CANCELLED)
};

struct GenerationResult {
  FinishReason reason = FinishReason::kError;
  absl::Status status;       // OK unless reason is kError
  double queued_ms = 0;      // until the first prefill step
  double prompt_ms = 0;      // prefill, from the first step to the first token
  double decode_ms = 0;      // from the first token to the last
  int prompt_evaluated = 0;  // prompt tokens that were computed (not cached)
};

// Where a request's results go. Called by the deployment's scheduler thread, one call at a time per
// request, in order: OnPromptDone once, OnToken per sampled token (the end-of-generation token
// included), OnFinish exactly once and last; an error may come at any point. Implementations
// return at once and never call back into the deployment.
class GenerationSink {
 public:
  virtual ~GenerationSink() = default;
  virtual void OnPromptDone(PromptResult result) = 0;
  virtual void OnToken(TokenEvent token) = 0;
  virtual void OnFinish(GenerationResult result) = 0;
};

enum class DeploymentState {
  kLoading,     // workers are starting or reading weights
  kReady,       // serves
  kRecovering,  // a worker is being replaced; accepted requests wait and go on
  kFailed,      // cannot serve until somebody acts
};

// What does not change while a deployment exists.
struct DeploymentInfo {
  std::string name = {};                  // as in `model` of a request
  std::vector<std::string> aliases = {};  // other names that select it
  std::string role = {};                  // "primary" or "sidecar"
  std::string architecture = {};          // as in the GGUF file
  int context_length = 0;                 // tokens of prompt and output together
  uint64_t parameters = 0;
  uint64_t file_bytes = 0;
  int64_t created_unix_s = 0;
  bool thinking = false;   // for requests that do not say
  bool recurrent = false;  // a prefix can be reused up to certain positions only
};

// How busy a deployment is, for /metrics.
struct DeploymentLoad {
  int requests_running = 0;  // hold a slot
  int requests_waiting = 0;
  int slots = 0;
  int slots_used = 0;  // by running requests, and by ended ones whose last step is on its way
  int kv_pages = 0;
  int kv_pages_used = 0;     // by requests
  int kv_pages_cached = 0;   // by the prefix cache alone: there for whoever needs one
  uint64_t preemptions = 0;  // requests sent back to waiting because pages ran out
  StepTimes decode_step;     // medians of the last decode steps; zeros before the first
};

using RequestId = uint64_t;

// Thread-safe. Outlives the HTTP server.
class Deployment {
 public:
  virtual ~Deployment() = default;

  virtual const DeploymentInfo& info() const = 0;
  virtual DeploymentState state() const = 0;
  // The reason for the state, one line; empty when there is nothing to say.
  virtual std::string state_message() const = 0;
  virtual DeploymentLoad load() const = 0;
  virtual const Tokenizer& tokenizer() const = 0;
  // nullptr if the file has no template.
  virtual const ChatTemplate* chat_template() const = 0;

  // Queues a request; never blocks on generation. The sink may be called before this returns.
  // Errors: RESOURCE_EXHAUSTED (queue full, see RetryAfterSeconds), UNAVAILABLE (loading, failed or
  // draining), INVALID_ARGUMENT (prompt beyond the context).
  virtual absl::StatusOr<RequestId> Submit(GenerationRequest request,
                                           std::shared_ptr<GenerationSink> sink) = 0;
  // Ends a request in any phase; its OnFinish still comes. Unknown and finished ids are ignored.
  virtual void Cancel(RequestId id) = 0;
  // When a refused request may hope for room: what Retry-After says, >= 1.
  virtual int RetryAfterSeconds() const = 0;
};

}  // namespace packtrain

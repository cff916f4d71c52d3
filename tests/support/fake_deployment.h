#pragma once

// A deployment without workers: it answers every request with a script of tokens. And a tokenizer
// whose first 256 ids are the bytes.

#include <atomic>
#include <chrono>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "common/base/mutex.h"
#include "coordinator/api/deployment.h"

namespace packtrain {

class FakeTokenizer : public Tokenizer {
 public:
  static constexpr TokenId kBos = 256;
  static constexpr TokenId kEos = 257;
  static constexpr TokenId kThink = 258;
  static constexpr TokenId kThinkEnd = 259;
  static constexpr TokenId kFirstWord = 260;

  // `words` get the ids from kFirstWord on; Encode never produces them.
  explicit FakeTokenizer(std::vector<std::string> words = {});
  std::vector<TokenId> Encode(std::string_view text, EncodeOptions options) const override;
  std::string_view Piece(TokenId id, bool show_special) const override;
  int vocab_size() const override { return static_cast<int>(pieces_.size()); }
  TokenKind kind(TokenId id) const override;
  bool IsEndOfGeneration(TokenId id) const override { return id == kEos; }
  TokenId bos() const override { return kBos; }
  TokenId eos() const override { return kEos; }
  bool add_bos() const override { return add_bos_; }
  bool strips_leading_space() const override { return false; }
  void set_add_bos(bool add) { add_bos_ = add; }

 private:
  std::vector<std::string> pieces_;
  bool add_bos_ = true;
};

// Makes tokens of `words` joined by nothing, bytes where no word fits.
std::vector<TokenId> BytesOf(std::string_view text);

class FakeDeployment : public Deployment {
 public:
  FakeDeployment(DeploymentInfo info, std::unique_ptr<FakeTokenizer> tokenizer,
                 const ChatTemplate* chat_template);
  ~FakeDeployment() override;

  const DeploymentInfo& info() const override { return info_; }
  DeploymentState state() const override { return state_; }
  std::string state_message() const override { return ""; }
  DeploymentLoad load() const override { return {.slots = 8, .kv_pages = 512, .decode_step = {}}; }
  const Tokenizer& tokenizer() const override { return *tokenizer_; }
  const ChatTemplate* chat_template() const override { return chat_template_; }
  absl::StatusOr<RequestId> Submit(GenerationRequest request,
                                   std::shared_ptr<GenerationSink> sink) override;
  void Cancel(RequestId id) override;
  int RetryAfterSeconds() const override { return 7; }

  // The answer to everything: these tokens, then the end-of-generation token. Log-probabilities
  // are -0.5 for the first token, -1.0 for the second and so on, with ids + 1, + 2, ... as
  // alternatives.
  void SetScript(std::vector<TokenId> tokens);
  // Repeats the script until max_tokens.
  void SetEndless(bool endless);
  void SetState(DeploymentState state) { state_ = state; }
  // While held nothing is prefilled (kPrompt) or no token is made (kTokens).
  enum class Hold { kNone, kPrompt, kTokens };
  void SetHold(Hold hold);
  void SetQueueMax(size_t requests);
  // Requests fail with this after `tokens` tokens.
  void SetFailure(absl::Status status, size_t tokens);
  void SetTokenInterval(std::chrono::milliseconds interval);

  GenerationRequest last_request() const;
  int submitted() const { return submitted_; }
  int cancelled() const { return cancelled_; }
  int finished() const { return finished_; }
  // Waits until no request is queued or runs; false after two minutes, when something hangs.
  bool WaitIdle() const;

 private:
  struct Running {
    GenerationRequest request;
    std::shared_ptr<GenerationSink> sink;  // shared with the HTTP side
    bool prompt_done = false;
    bool cancelled = false;
    size_t made = 0;
  };

  void Run();
  // False once the request has ended.
  bool StepLocked(Running* running) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  TokenEvent MakeTokenLocked(const Running& running, TokenId id) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const DeploymentInfo info_;
  const std::unique_ptr<FakeTokenizer> tokenizer_;
  const ChatTemplate* const chat_template_;
  std::atomic<DeploymentState> state_ = DeploymentState::kReady;
  std::atomic<int> submitted_ = 0;
  std::atomic<int> cancelled_ = 0;
  std::atomic<int> finished_ = 0;

  mutable Mutex mutex_;
  mutable CondVar changed_;
  std::map<RequestId, Running> running_ ABSL_GUARDED_BY(mutex_);
  RequestId next_id_ ABSL_GUARDED_BY(mutex_) = 1;
  std::vector<TokenId> script_ ABSL_GUARDED_BY(mutex_);
  GenerationRequest last_request_ ABSL_GUARDED_BY(mutex_);
  bool endless_ ABSL_GUARDED_BY(mutex_) = false;
  Hold hold_ ABSL_GUARDED_BY(mutex_) = Hold::kNone;
  size_t queue_max_ ABSL_GUARDED_BY(mutex_) = 64;
  absl::Status failure_ ABSL_GUARDED_BY(mutex_);
  size_t fail_after_ ABSL_GUARDED_BY(mutex_) = 0;
  std::chrono::milliseconds interval_ ABSL_GUARDED_BY(mutex_){0};
  bool stop_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

}  // namespace packtrain

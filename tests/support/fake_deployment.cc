#include "tests/support/fake_deployment.h"

#include <utility>

namespace packtrain {

// --- FakeTokenizer -------------------------------------------------------------------------------

FakeTokenizer::FakeTokenizer(std::vector<std::string> words) {
  for (int byte = 0; byte < 256; ++byte) pieces_.emplace_back(1, static_cast<char>(byte));
  for (const char* special : {"<bos>", "<eos>", "<think>", "</think>"}) pieces_.push_back(special);
  for (std::string& word : words) pieces_.push_back(std::move(word));
}

std::vector<TokenId> FakeTokenizer::Encode(std::string_view text, EncodeOptions options) const {
  std::vector<TokenId> ids;
  if (options.add_special && add_bos_) ids.push_back(kBos);
  while (!text.empty()) {
    TokenId found = static_cast<unsigned char>(text[0]);
    for (TokenId id = kBos; options.parse_special && id < kFirstWord; ++id) {
      if (text.starts_with(pieces_[static_cast<size_t>(id)])) found = id;
    }
    text.remove_prefix(pieces_[static_cast<size_t>(found)].size());
    ids.push_back(found);
  }
  return ids;
}

std::string_view FakeTokenizer::Piece(TokenId id, bool show_special) const {
  if (kind(id) == TokenKind::kControl && !show_special) return "";
  return pieces_[static_cast<size_t>(id)];
}

TokenKind FakeTokenizer::kind(TokenId id) const {
  if (id < kBos) return TokenKind::kByte;
  return id < kFirstWord ? TokenKind::kControl : TokenKind::kNormal;
}

std::vector<TokenId> BytesOf(std::string_view text) {
  std::vector<TokenId> ids;
  for (const char c : text) ids.push_back(static_cast<unsigned char>(c));
  return ids;
}

// --- FakeDeployment ------------------------------------------------------------------------------

FakeDeployment::FakeDeployment(DeploymentInfo info, std::unique_ptr<FakeTokenizer> tokenizer,
                               const ChatTemplate* chat_template)
    : info_(std::move(info)),
      tokenizer_(std::move(tokenizer)),
      chat_template_(chat_template),
      thread_([this] { Run(); }) {}

FakeDeployment::~FakeDeployment() {
  {
    MutexLock lock(&mutex_);
    stop_ = true;
    changed_.NotifyAll();
  }
  thread_.join();
}

absl::StatusOr<RequestId> FakeDeployment::Submit(GenerationRequest request,
                                                 std::shared_ptr<GenerationSink> sink) {
  MutexLock lock(&mutex_);
  if (running_.size() >= queue_max_) return absl::ResourceExhaustedError("the queue is full");
  ++submitted_;
  last_request_ = request;
  const RequestId id = next_id_++;
  running_.emplace(id, Running{std::move(request), std::move(sink)});
  changed_.NotifyAll();
  return id;
}

void FakeDeployment::Cancel(RequestId id) {
  MutexLock lock(&mutex_);
  const auto found = running_.find(id);
  if (found == running_.end()) return;
  found->second.cancelled = true;
  changed_.NotifyAll();
}

TokenEvent FakeDeployment::MakeTokenLocked(const Running& running, TokenId id) const {
  TokenEvent token{id, 0.0F, {}};
  if (!running.request.logprobs) return token;
  token.logprob = -0.5F * static_cast<float>(running.made + 1);
  for (int i = 1; i <= running.request.top_logprobs; ++i) {
    token.top.emplace_back((id + i - 1) % tokenizer_->vocab_size(), -0.5F * static_cast<float>(i));
  }
  return token;
}

bool FakeDeployment::StepLocked(Running* running) {
  GenerationResult result;
  result.prompt_ms = 10;
  result.decode_ms = 20;
  result.prompt_evaluated = static_cast<int>(running->request.prompt.size()) - 1;
  if (running->cancelled) {
    ++cancelled_;
    result.status = absl::CancelledError("cancelled");
    running->sink->OnFinish(std::move(result));
    return false;
  }
  if (hold_ == Hold::kPrompt) return true;
  if (!running->prompt_done) {
    running->prompt_done = true;
    PromptResult prompt{1, {}};
    for (size_t i = 0; running->request.prompt_logprobs && i < running->request.prompt.size();
         ++i) {
      TokenEvent token{running->request.prompt[i], 0.0F, {}};
      if (i > 0) token = MakeTokenLocked(*running, token.id);
      prompt.prompt_logprobs.push_back(std::move(token));
    }
    running->sink->OnPromptDone(std::move(prompt));
  }
  if (!failure_.ok() && running->made >= fail_after_) {
    result.status = failure_;
    running->sink->OnFinish(std::move(result));
    return false;
  }
  if (hold_ == Hold::kTokens) return true;
  if (running->made == static_cast<size_t>(running->request.max_tokens)) {
    result.reason = FinishReason::kLength;
    running->sink->OnFinish(std::move(result));
    return false;
  }
  const bool scripted = running->made < script_.size() || endless_;
  const TokenId id = scripted ? script_[running->made % script_.size()] : FakeTokenizer::kEos;
  running->sink->OnToken(MakeTokenLocked(*running, id));
  ++running->made;
  if (id != FakeTokenizer::kEos || running->request.ignore_eos) return true;
  result.reason = FinishReason::kStop;
  running->sink->OnFinish(std::move(result));
  return false;
}

void FakeDeployment::Run() {
  MutexLock lock(&mutex_);
  while (!stop_) {
    bool moved = false;
    for (auto it = running_.begin(); it != running_.end();) {
      const size_t made = it->second.made;
      const bool alive = StepLocked(&it->second);
      moved = moved || !alive || it->second.made != made;
      if (!alive) ++finished_;
      it = alive ? std::next(it) : running_.erase(it);
    }
    if (running_.empty()) changed_.NotifyAll();
    if (!moved) {
      changed_.Wait(&mutex_);
    } else if (interval_.count() > 0) {
      changed_.WaitUntil(&mutex_, std::chrono::steady_clock::now() + interval_);
    } else {
      mutex_.Unlock();  // let Submit and Cancel in
      std::this_thread::yield();
      mutex_.Lock();
    }
  }
}

void FakeDeployment::SetScript(std::vector<TokenId> tokens) {
  MutexLock lock(&mutex_);
  script_ = std::move(tokens);
}

void FakeDeployment::SetEndless(bool endless) {
  MutexLock lock(&mutex_);
  endless_ = endless;
}

void FakeDeployment::SetHold(Hold hold) {
  MutexLock lock(&mutex_);
  hold_ = hold;
  changed_.NotifyAll();
}

void FakeDeployment::SetQueueMax(size_t requests) {
  MutexLock lock(&mutex_);
  queue_max_ = requests;
}

void FakeDeployment::SetFailure(absl::Status status, size_t tokens) {
  MutexLock lock(&mutex_);
  failure_ = std::move(status);
  fail_after_ = tokens;
}

void FakeDeployment::SetTokenInterval(std::chrono::milliseconds interval) {
  MutexLock lock(&mutex_);
  interval_ = interval;
}

GenerationRequest FakeDeployment::last_request() const {
  MutexLock lock(&mutex_);
  return last_request_;
}

bool FakeDeployment::WaitIdle() const {
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::minutes(2);
  MutexLock lock(&mutex_);
  while (!running_.empty()) {
    if (!changed_.WaitUntil(&mutex_, deadline)) return running_.empty();
  }
  return true;
}

}  // namespace packtrain

#include "coordinator/cli/bench_runs.h"

#include <algorithm>
#include <chrono>
#include <memory>
#include <utility>

#include "common/base/mutex.h"
#include "common/base/status_macros.h"

namespace packtrain {
namespace {

using Clock = std::chrono::steady_clock;

// Notes when the tokens of one stream come.
class Stopwatch : public GenerationSink {
 public:
  explicit Stopwatch(size_t tokens) { times_.reserve(tokens); }

  void OnPromptDone(PromptResult result) override {
    MutexLock lock(&mutex_);
    cached_ = result.cached_tokens;
  }
  void OnToken(TokenEvent) override {
    MutexLock lock(&mutex_);
    times_.push_back(Clock::now());
  }
  void OnFinish(GenerationResult result) override {
    MutexLock lock(&mutex_);
    status_ = std::move(result.status);
    finished_ = true;
    changed_.NotifyAll();
  }

  // Waits for the end; when each token came. Errors: that of the request.
  absl::StatusOr<TokenTimes> Wait() {
    MutexLock lock(&mutex_);
    while (!finished_) changed_.Wait(&mutex_);
    RETURN_IF_ERROR(status_);
    if (cached_ > 0) return absl::InternalError("a prompt of random ids was in the cache");
    if (times_.empty()) return absl::InternalError("a request ended without a token");
    return times_;
  }

 private:
  Mutex mutex_;
  CondVar changed_;
  TokenTimes times_ ABSL_GUARDED_BY(mutex_);
  absl::Status status_ ABSL_GUARDED_BY(mutex_);
  int cached_ ABSL_GUARDED_BY(mutex_) = 0;
  bool finished_ ABSL_GUARDED_BY(mutex_) = false;
};

double Seconds(Clock::duration time) { return std::chrono::duration<double>(time).count(); }

}  // namespace

absl::StatusOr<std::vector<TokenTimes>> DeploymentTarget::Run(
    std::vector<std::vector<TokenId>> prompts, int tokens) {
  std::vector<std::shared_ptr<Stopwatch>> streams;
  absl::Status status;
  for (std::vector<TokenId>& prompt : prompts) {
    GenerationRequest request;
    request.prompt = std::move(prompt);
    request.sampling.temperature = 0;
    request.max_tokens = tokens;
    request.ignore_eos = true;
    auto stream = std::make_shared<Stopwatch>(static_cast<size_t>(tokens));
    if (const auto id = deployment_->Submit(std::move(request), stream); !id.ok()) {
      status.Update(id.status());
      break;
    }
    streams.push_back(std::move(stream));
  }
  std::vector<TokenTimes> times;
  for (const auto& stream : streams) {
    absl::StatusOr<TokenTimes> got = stream->Wait();
    status.Update(got.status());
    if (got.ok()) times.push_back(*std::move(got));
  }
  RETURN_IF_ERROR(status);
  return times;
}

absl::StatusOr<BenchRates> BenchRuns::Measure(const BenchCase& bench_case) {
  std::vector<std::vector<TokenId>> prompts(static_cast<size_t>(bench_case.streams));
  std::uniform_int_distribution<TokenId> ids(0, target_->vocab_size() - 1);
  for (std::vector<TokenId>& prompt : prompts) {
    prompt.resize(static_cast<size_t>(bench_case.prompt));
    for (TokenId& id : prompt) id = ids(random_);
  }
  const Clock::time_point start = Clock::now();
  // The first token is the end of prefill; decode is what comes after it.
  ASSIGN_OR_RETURN(const std::vector<TokenTimes> times,
                   target_->Run(std::move(prompts), bench_case.generate + 1));
  Clock::time_point all_decode = start, first_end = Clock::time_point::max();
  for (const TokenTimes& stream : times) {
    all_decode = std::max(all_decode, stream.front());
    first_end = std::min(first_end, stream.back());
  }
  BenchRates rates;
  rates.prefill = bench_case.streams * bench_case.prompt / Seconds(all_decode - start);
  if (bench_case.generate == 0) return rates;
  int64_t decoded = 0;
  for (const TokenTimes& stream : times) {
    decoded += std::count_if(stream.begin(), stream.end(), [&](Clock::time_point time) {
      return time > all_decode && time <= first_end;
    });
  }
  if (decoded == 0) {
    return absl::InvalidArgumentError(
        "the first stream ended before the last one began: generate more tokens");
  }
  rates.decode = static_cast<double>(decoded) / Seconds(first_end - all_decode);
  return rates;
}

}  // namespace packtrain

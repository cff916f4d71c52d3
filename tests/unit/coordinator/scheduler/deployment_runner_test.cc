// A deployment's thread over stages that take no time: results reach the sinks, limits are kept,
// and every request ends whatever happens to the pipeline.

#include "coordinator/scheduler/deployment_runner.h"

#include <atomic>

#include "gtest/gtest.h"
#include "tests/sim/instant_pipeline.h"
#include "tests/sim/number_tokenizer.h"

namespace packtrain {
namespace {

class WaitingSink : public GenerationSink {
 public:
  void OnPromptDone(PromptResult) override {}
  void OnToken(TokenEvent token) override {
    MutexLock lock(&mutex_);
    tokens_.push_back(token.id);
    changed_.NotifyAll();
  }
  void OnFinish(GenerationResult result) override {
    MutexLock lock(&mutex_);
    result_ = std::move(result);
    finished_ = true;
    changed_.NotifyAll();
  }
  void WaitForTokens(size_t count) {
    MutexLock lock(&mutex_);
    while (tokens_.size() < count && !finished_) changed_.Wait(&mutex_);
  }
  GenerationResult Wait() {
    MutexLock lock(&mutex_);
    while (!finished_) changed_.Wait(&mutex_);
    return result_;
  }
  bool finished() {
    MutexLock lock(&mutex_);
    return finished_;
  }
  std::vector<TokenId> tokens() {
    MutexLock lock(&mutex_);
    return tokens_;
  }

 private:
  Mutex mutex_;
  CondVar changed_;
  std::vector<TokenId> tokens_ ABSL_GUARDED_BY(mutex_);
  GenerationResult result_ ABSL_GUARDED_BY(mutex_);
  bool finished_ ABSL_GUARDED_BY(mutex_) = false;
};

class DeploymentRunnerTest : public testing::Test {
 protected:
  static constexpr PipelineLimits kLimits{.num_stages = 2,
                                          .num_slots = 2,
                                          .num_pages = 10000,
                                          .num_snapshots = 0,
                                          .max_tokens = 64,
                                          .context_length = 100000};
  static GenerationRequest Request(int max_tokens) {
    return {.prompt = {1, 2, 3}, .sampling = {}, .max_tokens = max_tokens};
  }
  // Results never come.
  class HeldPipeline : public Pipeline {
   public:
    PipelineLimits limits() const override { return kLimits; }
    void Submit(std::vector<Step>) override {}
    void SetResultCallback(std::function<void(StepResult)>) override {}
  };
  std::unique_ptr<DeploymentRunner> Runner(int queue_max = 128) {
    return std::make_unique<DeploymentRunner>(DeploymentInfo{}, std::make_unique<NumberTokenizer>(),
                                              nullptr,
                                              DeploymentRunner::Options{.queue_max = queue_max});
  }
  void StartAndWait(DeploymentRunner* runner, Pipeline* pipeline) {
    runner->Start(pipeline);
    while (runner->state() != DeploymentState::kReady) std::this_thread::yield();
  }
};

TEST_F(DeploymentRunnerTest, BeforeTheWorkersHaveLoadedRequestsAreUnavailable) {
  const auto runner = Runner();
  EXPECT_EQ(runner->state(), DeploymentState::kLoading);
  EXPECT_EQ(runner->Submit(Request(1), std::make_shared<WaitingSink>()).status().code(),
            absl::StatusCode::kUnavailable);
}

TEST_F(DeploymentRunnerTest, TokensReachTheSinkInOrder) {
  InstantPipeline pipeline(kLimits);
  const auto runner = Runner();
  StartAndWait(runner.get(), &pipeline);
  const auto sink = std::make_shared<WaitingSink>();
  ASSERT_TRUE(runner->Submit(Request(200), sink).ok());
  EXPECT_EQ(sink->Wait().reason, FinishReason::kLength);
  std::vector<TokenId> ids = {1, 2, 3};
  for (TokenId token : sink->tokens()) {
    EXPECT_EQ(token, FakeNextToken(ids, 0, 1 << 30));
    ids.push_back(token);
  }
  EXPECT_EQ(ids.size(), 203u);
  EXPECT_EQ(pipeline.violation(), "");
}

TEST_F(DeploymentRunnerTest, AFullQueueIsResourceExhausted) {
  HeldPipeline pipeline;
  const auto runner = Runner(3);
  StartAndWait(runner.get(), &pipeline);
  RequestId last = 0;
  for (int i = 0; i < 5; ++i) {
    const auto id = runner->Submit(Request(10), std::make_shared<WaitingSink>());
    ASSERT_TRUE(id.ok());
    last = *id;
  }
  EXPECT_EQ(runner->Submit(Request(10), std::make_shared<WaitingSink>()).status().code(),
            absl::StatusCode::kResourceExhausted);
  EXPECT_GE(runner->RetryAfterSeconds(), 1);
  runner->Cancel(last);
  while (!runner->Submit(Request(10), std::make_shared<WaitingSink>()).ok()) {
    std::this_thread::yield();
  }
}

TEST_F(DeploymentRunnerTest, APromptBeyondTheContextIsRefusedAtOnce) {
  InstantPipeline pipeline(kLimits);
  const auto runner = Runner();
  StartAndWait(runner.get(), &pipeline);
  GenerationRequest request = Request(1);
  request.prompt.assign(100000, 5);
  EXPECT_EQ(runner->Submit(request, std::make_shared<WaitingSink>()).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST_F(DeploymentRunnerTest, CancelEndsARequest) {
  HeldPipeline pipeline;
  const auto runner = Runner();
  StartAndWait(runner.get(), &pipeline);
  const auto sink = std::make_shared<WaitingSink>();
  const auto id = runner->Submit(Request(10), sink);
  ASSERT_TRUE(id.ok());
  runner->Cancel(*id);
  runner->Cancel(*id + 1);
  EXPECT_EQ(sink->Wait().status.code(), absl::StatusCode::kCancelled);
}

TEST_F(DeploymentRunnerTest, RunningRequestsGoOnAfterALoss) {
  InstantPipeline pipeline(kLimits);
  const auto runner = Runner();
  StartAndWait(runner.get(), &pipeline);
  const auto sink = std::make_shared<WaitingSink>();
  ASSERT_TRUE(runner->Submit(Request(20000), sink).ok());
  sink->WaitForTokens(50);
  runner->PipelineLost("worker 1 died");
  pipeline.Kill();
  while (runner->state() != DeploymentState::kRecovering) std::this_thread::yield();
  EXPECT_EQ(runner->state_message(), "worker 1 died");
  pipeline.Restart();
  runner->PipelineReady();
  const auto later = std::make_shared<WaitingSink>();
  ASSERT_TRUE(runner->Submit(Request(10), later).ok());
  EXPECT_TRUE(later->Wait().status.ok());
  sink->WaitForTokens(300);
  std::vector<TokenId> ids = {1, 2, 3};
  const std::vector<TokenId> tokens = sink->tokens();
  for (size_t i = 0; i < 300; ++i) {
    ASSERT_EQ(tokens[i], FakeNextToken(ids, 0, 1 << 30));
    ids.push_back(tokens[i]);
  }
}

TEST_F(DeploymentRunnerTest, StepsThatKeepFailingEndTheirRequestsOnly) {
  InstantPipeline pipeline(kLimits);
  const auto runner = Runner();
  StartAndWait(runner.get(), &pipeline);
  pipeline.Kill();
  const auto sink = std::make_shared<WaitingSink>();
  ASSERT_TRUE(runner->Submit(Request(10), sink).ok());
  EXPECT_EQ(sink->Wait().status.message(), "the worker died");
  pipeline.Restart();
  const auto later = std::make_shared<WaitingSink>();
  ASSERT_TRUE(runner->Submit(Request(10), later).ok());
  EXPECT_TRUE(later->Wait().status.ok());
}

TEST_F(DeploymentRunnerTest, FailEndsEveryRequestWithTheReason) {
  HeldPipeline pipeline;
  const auto runner = Runner();
  StartAndWait(runner.get(), &pipeline);
  const auto sink = std::make_shared<WaitingSink>();
  ASSERT_TRUE(runner->Submit(Request(10), sink).ok());
  runner->Fail(absl::UnavailableError("worker 1 cannot be replaced"));
  EXPECT_EQ(sink->Wait().status.message(), "worker 1 cannot be replaced");
  EXPECT_EQ(runner->state(), DeploymentState::kFailed);
  EXPECT_EQ(runner->Submit(Request(1), sink).status().message(), "worker 1 cannot be replaced");
}

TEST_F(DeploymentRunnerTest, TheDestructorEndsWhatIsRunning) {
  InstantPipeline pipeline(kLimits);
  const auto sink = std::make_shared<WaitingSink>();
  {
    const auto runner = Runner();
    StartAndWait(runner.get(), &pipeline);
    ASSERT_TRUE(runner->Submit(Request(50000), sink).ok());
    sink->WaitForTokens(5);
  }
  EXPECT_TRUE(sink->finished());
  EXPECT_EQ(sink->Wait().status.code(), absl::StatusCode::kUnavailable);
}

}  // namespace
}  // namespace packtrain

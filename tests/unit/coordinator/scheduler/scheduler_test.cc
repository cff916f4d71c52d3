// What single rules of the scheduler do, over simulated stages and a simulated clock.

#include "coordinator/scheduler/scheduler.h"

#include <algorithm>
#include <numeric>

#include "gtest/gtest.h"
#include "tests/sim/recording_sink.h"
#include "tests/sim/sim_pipeline.h"

namespace packtrain {
namespace {

using std::chrono::microseconds;
using std::chrono::milliseconds;

constexpr int kNeverEnds = 1 << 30;

int RowsOf(const Step& step) {
  int rows = 0;
  for (const StepSequence& part : step.sequences) rows += part.num_tokens();
  return rows;
}

std::vector<TokenId> Prompt(int count, int first = 1) {
  std::vector<TokenId> ids(static_cast<size_t>(count));
  for (int i = 0; i < count; ++i) ids[static_cast<size_t>(i)] = 1 + (first + i) % (kFakeVocab - 1);
  return ids;
}

struct Stamped : RecordingSink {
  explicit Stamped(const SchedulerTime* clock) : now(clock) {}
  void OnToken(TokenEvent token) override {
    RecordingSink::OnToken(std::move(token));
    at.push_back(*now);
  }
  // The longest pause between two tokens.
  SimDuration LongestGap() const {
    SimDuration longest{};
    for (size_t i = 1; i < at.size(); ++i) longest = std::max(longest, at[i] - at[i - 1]);
    return longest;
  }
  const SchedulerTime* now;
  std::vector<SchedulerTime> at;
};

class SchedulerTest : public testing::Test {
 protected:
  PipelineLimits limits_{.num_stages = 1,
                         .num_slots = 8,
                         .num_pages = 200,
                         .num_snapshots = 0,
                         .max_tokens = 512,
                         .context_length = 4096};
  SimPipeline::StageTime stage_time_ = [](const Step&, int) { return milliseconds(1); };
  SimDuration report_time_{};
  int end_every_ = kNeverEnds;

  void Start() {
    pipeline_ = std::make_unique<SimPipeline>(limits_, end_every_, stage_time_, report_time_);
    scheduler_ = std::make_unique<Scheduler>(
        SchedulerOptions{.vocab_size = kFakeVocab,
                         .is_end_of_generation = [](TokenId id) { return id == kFakeEnd; }});
    scheduler_->OnPipelineReady(limits_, now_);
  }

  std::shared_ptr<Stamped> Submit(GenerationRequest request) {
    auto sink = std::make_shared<Stamped>(&now_);
    scheduler_->Submit(next_id_++, std::move(request), sink, now_);
    Pump();
    return sink;
  }
  std::shared_ptr<Stamped> Submit(int prompt, int max_tokens, int first = 1) {
    return Submit({.prompt = Prompt(prompt, first), .sampling = {}, .max_tokens = max_tokens});
  }

  void Pump() {
    while (std::optional<Step> step = scheduler_->NextStep(now_)) {
      rows_ += RowsOf(*step);
      ++steps_;
      pipeline_->Submit(std::move(*step), now_);
    }
    ASSERT_EQ(pipeline_->violation(), "");
    ASSERT_TRUE(scheduler_->CheckIntegrity().ok()) << scheduler_->CheckIntegrity();
  }
  bool TakeResult() {
    const std::optional<SchedulerTime> at = pipeline_->NextResultAt();
    if (!at) return false;
    now_ = std::max(now_, *at);
    scheduler_->OnResult(pipeline_->TakeResult(), now_);
    Pump();
    return true;
  }
  void RunToEnd() {
    while (TakeResult()) {
    }
    EXPECT_TRUE(scheduler_->idle());
  }

  // Runs to the end with stages that say how long a decode step takes; how often steps were sent.
  int CountSends(float interval_us) {
    int sends = 0;
    while (const std::optional<SchedulerTime> at = pipeline_->NextResultAt()) {
      now_ = std::max(now_, *at);
      StepResult result = pipeline_->TakeResult();
      result.times.interval = interval_us;
      scheduler_->OnResult(result, now_);
      const int before = steps_;
      Pump();
      sends += steps_ > before ? 1 : 0;
    }
    return sends;
  }

  SchedulerTime now_{};
  RequestId next_id_ = 1;
  int rows_ = 0;
  int steps_ = 0;
  std::unique_ptr<SimPipeline> pipeline_;
  std::unique_ptr<Scheduler> scheduler_;
};

TEST_F(SchedulerTest, ThreeSequencesKeepThreeStagesBusy) {
  limits_.num_stages = 3;
  const auto tokens_per_second = [&](int sequences) {
    Start();
    const SchedulerTime start = now_;
    std::vector<std::shared_ptr<Stamped>> sinks;
    for (int i = 0; i < sequences; ++i) sinks.push_back(Submit(4, 500, i * 100));
    RunToEnd();
    const double seconds = std::chrono::duration<double>(now_ - start).count();
    return sequences * 500 / seconds;
  };
  const double one = tokens_per_second(1);
  const double three = tokens_per_second(3);
  EXPECT_NEAR(one, 1000.0 / 3, 5);
  EXPECT_GE(three, 2.5 * one);
}

TEST_F(SchedulerTest, StepsSentAheadHideTheWayToTheCoordinator) {
  limits_.num_stages = 3;
  report_time_ = milliseconds(2);
  Start();
  const auto sink = Submit(4, 300);
  RunToEnd();
  EXPECT_LT(now_.time_since_epoch(), milliseconds(3 * 300 + 20));
}

TEST_F(SchedulerTest, QuickStepsAreSentSeveralAtATime) {
  Start();
  const auto sink = Submit(10, 400);
  EXPECT_LT(CountSends(/*interval_us=*/1000), 400 / 4);
  EXPECT_EQ(sink->tokens.size(), 400u);
}

TEST_F(SchedulerTest, SlowStepsAreSentOneAheadOnly) {
  Start();
  const auto sink = Submit(10, 100);
  // One whenever another has come back.
  EXPECT_GT(CountSends(/*interval_us=*/20'000), 100 - 3);
  EXPECT_EQ(sink->tokens.size(), 100u);
}

TEST_F(SchedulerTest, ALongPrefillDelaysADecodingStreamByAtMostTwoChunkTimes) {
  for (int stages : {1, 3}) {
    limits_.num_stages = stages;
    // A chunk of 512 rows takes 52 ms in each stage, a decode step 1 ms.
    stage_time_ = [](const Step& step, int) { return microseconds(900 + 100 * RowsOf(step)); };
    Start();
    const auto stream = Submit(4, 400);
    for (int i = 0; i < 60; ++i) TakeResult();
    const auto prefill = Submit(2000, 1, 50);
    RunToEnd();
    ASSERT_EQ(stream->tokens.size(), 400u);
    ASSERT_EQ(prefill->tokens.size(), 1u);
    const SimDuration chunk = microseconds((900 + 100 * 512) * stages);
    EXPECT_LE(stream->LongestGap(), 2 * chunk) << stages << " stages";
  }
}

TEST_F(SchedulerTest, ChunksAreAsLongAsAllowedOnlyWhileNobodyDecodes) {
  limits_.max_tokens = 8192;
  limits_.context_length = 20000;
  limits_.num_pages = 400;
  int longest = 0;
  stage_time_ = [&](const Step& step, int) {
    longest = std::max(longest, RowsOf(step));
    return microseconds(100 + RowsOf(step));
  };
  Start();
  Submit(9000, 1);
  RunToEnd();
  EXPECT_EQ(longest, 8192);
  longest = 0;
  const auto stream = Submit(4, 400);
  for (int i = 0; i < 60; ++i) TakeResult();
  Submit(9000, 1, 50);
  RunToEnd();
  EXPECT_EQ(longest, 2048);
  EXPECT_EQ(stream->tokens.size(), 400u);
}

TEST_F(SchedulerTest, ANinthRequestWaitsForASlot) {
  Start();
  std::vector<std::shared_ptr<Stamped>> sinks;
  for (int i = 0; i < 9; ++i) sinks.push_back(Submit(10, 20, i * 50));
  EXPECT_EQ(scheduler_->num_running(), 8);
  EXPECT_EQ(scheduler_->num_waiting(), 1);
  while (!sinks[0]->finished) ASSERT_TRUE(TakeResult());
  EXPECT_TRUE(sinks[8]->tokens.empty());
  RunToEnd();
  EXPECT_EQ(sinks[8]->tokens.size(), 20u);
}

TEST_F(SchedulerTest, AShortPromptDoesNotWaitForALongOneInFrontOfIt) {
  limits_.context_length = 10000;
  stage_time_ = [](const Step& step, int) { return microseconds(100 * RowsOf(step)); };
  Start();
  const auto long_one = Submit(8000, 1);
  const auto short_one = Submit(100, 1, 500);
  while (!short_one->finished) ASSERT_TRUE(TakeResult());
  EXPECT_LE(now_.time_since_epoch(), milliseconds(4 * 52));
  EXPECT_FALSE(long_one->finished);
  RunToEnd();
}

TEST_F(SchedulerTest, ChoicesOfOnePromptComputeItOnce) {
  Start();
  std::vector<std::shared_ptr<Stamped>> sinks;
  for (uint64_t choice = 0; choice < 4; ++choice) {
    GenerationRequest request{.prompt = Prompt(700), .sampling = {}, .max_tokens = 1};
    request.sampling.seed = choice;
    sinks.push_back(Submit(std::move(request)));
  }
  RunToEnd();
  EXPECT_EQ(rows_, 700 + 3);
  for (size_t choice = 0; choice < 4; ++choice) {
    EXPECT_EQ(sinks[choice]->tokens,
              std::vector<TokenId>{FakeNextToken(Prompt(700), choice, kNeverEnds)});
    EXPECT_EQ(sinks[choice]->prompt.cached_tokens, choice == 0 ? 0 : 699);
  }
}

TEST_F(SchedulerTest, ASecondTurnReusesTheFirst) {
  Start();
  const auto first = Submit(300, 50);
  RunToEnd();
  std::vector<TokenId> turn = Prompt(300);
  turn.insert(turn.end(), first->tokens.begin(), first->tokens.end());
  turn.resize(turn.size() + 40, 7);
  const auto second = Submit({.prompt = turn, .sampling = {}, .max_tokens = 5});
  RunToEnd();
  // The last token of the first turn was sampled, not computed.
  EXPECT_EQ(second->prompt.cached_tokens, 349);
  EXPECT_EQ(second->result.prompt_evaluated, 390 - 349);
}

TEST_F(SchedulerTest, RecurrentChatsThatPartInTheLastTurnShareUpToIt) {
  limits_.num_snapshots = 8;
  Start();
  std::vector<TokenId> a = Prompt(500);
  std::vector<TokenId> b = a;
  a.resize(560, 3);
  b.resize(570, 4);
  Submit({.prompt = a, .sampling = {}, .max_tokens = 5, .last_turn_start = 490});
  RunToEnd();
  const auto parted = Submit({.prompt = b, .sampling = {}, .max_tokens = 5});
  const auto same = Submit({.prompt = a, .sampling = {}, .max_tokens = 5});
  RunToEnd();
  EXPECT_EQ(parted->prompt.cached_tokens, 490);
  EXPECT_EQ(same->prompt.cached_tokens, 559);
}

TEST_F(SchedulerTest, LongRecurrentPromptsKeepASnapshotEvery2048Tokens) {
  limits_.num_snapshots = 8;
  limits_.context_length = 8192;
  Start();
  Submit(5000, 1);
  RunToEnd();
  std::vector<TokenId> parted = Prompt(5000);
  parted.resize(4200);
  parted.resize(4300, 5);
  const auto sink = Submit({.prompt = parted, .sampling = {}, .max_tokens = 1});
  RunToEnd();
  EXPECT_EQ(sink->prompt.cached_tokens, 4096);
}

TEST_F(SchedulerTest, PromptsThatDoNotFitTogetherWaitAndAreComputedOnce) {
  limits_.num_pages = 160;  // 63 for each of them
  Start();
  for (int i = 0; i < 4; ++i) Submit(4000, 1, 1 + 300 * i);
  RunToEnd();
  EXPECT_EQ(scheduler_->num_preemptions(), 0u);
  EXPECT_EQ(rows_, 4 * 4000);
}

TEST_F(SchedulerTest, WhenPagesRunOutTheYoungestWaitsAndLosesNothing) {
  limits_.num_pages = 10;
  Start();
  const auto oldest = Submit(200, 300);
  const auto youngest = Submit(200, 300, 400);
  RunToEnd();
  EXPECT_GT(scheduler_->num_preemptions(), 0u);
  EXPECT_LT(oldest->at.back(), youngest->at.back());
  std::vector<TokenId> ids = Prompt(200, 400);
  for (TokenId token : youngest->tokens) {
    EXPECT_EQ(token, FakeNextToken(ids, 0, kNeverEnds));
    ids.push_back(token);
  }
  EXPECT_EQ(youngest->tokens.size(), 300u);
}

TEST_F(SchedulerTest, TheContextEndsASequence) {
  limits_.context_length = 128;
  Start();
  const auto sink = Submit(100, 1000);
  RunToEnd();
  EXPECT_EQ(sink->tokens.size(), 28u);
  EXPECT_EQ(sink->result.reason, FinishReason::kLength);
}

TEST_F(SchedulerTest, EndOfGenerationStopsUnlessIgnored) {
  end_every_ = 4;
  Start();
  const auto stopped = Submit(10, 200);
  GenerationRequest request{.prompt = Prompt(10), .sampling = {}, .max_tokens = 200};
  request.ignore_eos = true;
  const auto ignored = Submit(request);
  RunToEnd();
  EXPECT_EQ(stopped->result.reason, FinishReason::kStop);
  EXPECT_EQ(stopped->tokens.back(), kFakeEnd);
  EXPECT_EQ(ignored->result.reason, FinishReason::kLength);
  EXPECT_EQ(ignored->tokens.size(), 200u);
}

TEST_F(SchedulerTest, CancelEndsARequestInEveryPhase) {
  limits_.num_slots = 1;
  Start();
  const auto decoding = Submit(10, 1000);
  const auto waiting = Submit(10, 10, 100);
  for (int i = 0; i < 20; ++i) TakeResult();
  scheduler_->Cancel(2, now_);
  EXPECT_EQ(waiting->result.status.code(), absl::StatusCode::kCancelled);
  scheduler_->Cancel(1, now_);
  EXPECT_EQ(decoding->result.status.code(), absl::StatusCode::kCancelled);
  const auto prefilling = Submit(3000, 10, 300);
  RunToEnd();
  const auto again = Submit(3000, 10, 600);
  TakeResult();
  scheduler_->Cancel(4, now_);
  EXPECT_TRUE(again->finished);
  EXPECT_FALSE(again->prompt_done);
  RunToEnd();
  EXPECT_EQ(prefilling->tokens.size(), 10u);
}

TEST_F(SchedulerTest, MaxTokensZeroOnlyEvaluatesThePrompt) {
  Start();
  GenerationRequest request{.prompt = Prompt(1300), .sampling = {}, .max_tokens = 0};
  request.prompt_logprobs = true;
  const auto sink = Submit(request);
  RunToEnd();
  EXPECT_TRUE(sink->tokens.empty());
  EXPECT_EQ(sink->result.reason, FinishReason::kLength);
  ASSERT_EQ(sink->prompt.prompt_logprobs.size(), 1300u);
  EXPECT_EQ(sink->prompt.prompt_logprobs[0].logprob, 0);
  for (size_t i = 1; i < 1300; ++i) {
    EXPECT_EQ(sink->prompt.prompt_logprobs[i].id, request.prompt[i]);
    EXPECT_EQ(sink->prompt.prompt_logprobs[i].logprob, -static_cast<float>(request.prompt[i]));
  }
}

TEST_F(SchedulerTest, ATokenOutsideTheVocabularyCountsAsAFailedStep) {
  Start();
  const auto sink = Submit(10, 5);
  StepResult result = pipeline_->TakeResult();
  result.outputs[0].token = kFakeVocab;
  scheduler_->OnResult(result, now_);
  EXPECT_FALSE(scheduler_->pipeline_up());
  while (pipeline_->NextResultAt()) scheduler_->OnResult(pipeline_->TakeResult(), now_);
  EXPECT_TRUE(sink->tokens.empty());
  EXPECT_EQ(scheduler_->num_waiting(), 1);
  pipeline_->Restart();
  scheduler_->OnPipelineReady(limits_, now_);
  Pump();
  RunToEnd();
  EXPECT_EQ(sink->tokens.size(), 5u);
}

TEST_F(SchedulerTest, RequestsThatCannotFitAreRefused) {
  PipelineLimits limits{.num_pages = 2, .context_length = 4096};
  GenerationRequest request{.prompt = Prompt(127), .sampling = {}, .max_tokens = 1};
  EXPECT_TRUE(Scheduler::CheckRequest(request, limits).ok());
  request.prompt = Prompt(128);
  const absl::Status status = Scheduler::CheckRequest(request, limits);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(status.message().find("at most 127"), std::string::npos) << status;
  request.prompt.clear();
  EXPECT_EQ(Scheduler::CheckRequest(request, limits).code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace packtrain

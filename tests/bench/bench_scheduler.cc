// Steps a second of the scheduler's own work, over stages that return at once: the state machine
// alone, and inside its thread with the inbox that results come through.

#include <benchmark/benchmark.h>

#include <deque>
#include <memory>
#include <vector>

#include "coordinator/scheduler/deployment_runner.h"
#include "tests/sim/instant_pipeline.h"
#include "tests/sim/number_tokenizer.h"
#include "tests/sim/recording_sink.h"

namespace packtrain {
namespace {

PipelineLimits Limits(int num_stages) {
  return {.num_stages = num_stages,
          .num_slots = 8,
          .num_pages = 16384,
          .num_snapshots = 0,
          .max_tokens = 512,
          .context_length = 131072};
}

GenerationRequest Request(int max_tokens, uint64_t seed) {
  GenerationRequest request{
      .prompt = std::vector<TokenId>(500, 1), .sampling = {}, .max_tokens = max_tokens};
  request.prompt[0] = static_cast<TokenId>(seed);
  request.ignore_eos = true;
  return request;
}

// Answers a step without looking at it.
StepResult Answer(const Step& step) {
  StepResult result;
  result.id = step.id;
  for (const StepSequence& part : step.sequences) {
    if (part.output == StepOutputKind::kNone) continue;
    result.outputs.emplace_back();
    result.outputs.back().slot = part.slot;
    result.outputs.back().token = 5;
  }
  return result;
}

void BM_SchedulerAlone(benchmark::State& state) {
  const int sequences = static_cast<int>(state.range(1));
  Scheduler scheduler(
      {.vocab_size = kFakeVocab, .is_end_of_generation = [](TokenId) { return false; }});
  const SchedulerTime now{};
  scheduler.OnPipelineReady(Limits(static_cast<int>(state.range(0))), now);
  std::deque<Step> in_flight;
  RequestId id = 0;
  for (auto _ : state) {
    while (scheduler.num_requests() < sequences) {
      ++id;
      scheduler.Submit(id, Request(2000, id), std::make_shared<RecordingSink>(), now);
    }
    while (std::optional<Step> step = scheduler.NextStep(now)) {
      in_flight.push_back(std::move(*step));
    }
    scheduler.OnResult(Answer(in_flight.front()), now);
    in_flight.pop_front();
  }
  if (absl::Status status = scheduler.CheckIntegrity(); !status.ok()) {
    state.SkipWithError(std::string(status.message()).c_str());
  }
  state.counters["steps/s"] =
      benchmark::Counter(static_cast<double>(state.iterations()), benchmark::Counter::kIsRate);
}
BENCHMARK(BM_SchedulerAlone)->ArgNames({"stages", "sequences"})->ArgsProduct({{1, 4}, {1, 8}});

class AnsweringPipeline : public Pipeline {
 public:
  explicit AnsweringPipeline(int num_stages) : limits_(Limits(num_stages)) {}
  PipelineLimits limits() const override { return limits_; }
  void Submit(std::vector<Step> batch) override {
    for (const Step& step : batch) {
      ++steps;
      callback_(Answer(step));
    }
  }
  void SetResultCallback(std::function<void(StepResult)> callback) override {
    callback_ = std::move(callback);
  }
  std::atomic<int64_t> steps = 0;

 private:
  const PipelineLimits limits_;
  std::function<void(StepResult)> callback_;
};

class CountingSink : public RecordingSink {
 public:
  explicit CountingSink(std::atomic<int>* open) : open_(open) {}
  void OnFinish(GenerationResult) override {
    --*open_;
    open_->notify_one();
  }

 private:
  std::atomic<int>* open_;
};

void BM_Deployment(benchmark::State& state) {
  AnsweringPipeline pipeline(static_cast<int>(state.range(0)));
  DeploymentRunner runner({}, std::make_unique<NumberTokenizer>(), nullptr, {});
  runner.Start(&pipeline);
  while (runner.state() != DeploymentState::kReady) std::this_thread::yield();
  for (auto _ : state) {
    std::atomic<int> open = static_cast<int>(state.range(1));
    for (int i = 0; i < state.range(1); ++i) {
      const auto id = runner.Submit(Request(2000, static_cast<uint64_t>(i)),
                                    std::make_shared<CountingSink>(&open));
      if (!id.ok()) state.SkipWithError(std::string(id.status().message()).c_str());
    }
    for (int left = open; left > 0; left = open) open.wait(left);
  }
  state.counters["steps/s"] =
      benchmark::Counter(static_cast<double>(pipeline.steps.load()), benchmark::Counter::kIsRate);
}
BENCHMARK(BM_Deployment)
    ->ArgNames({"stages", "sequences"})
    ->ArgsProduct({{1, 4}, {1, 8}})
    ->UseRealTime()
    ->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace packtrain

// What coordinator and control stream add to a decode step: one sequence through the whole of
// scheduler, fleet, worker process and engine, over stages that return at once. Time a token is
// then nothing but overhead. Beside it the fleet alone, step by step.

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/base/check.h"
#include "coordinator/fleet/fleet_pipeline.h"
#include "coordinator/fleet/worker_process.h"
#include "coordinator/scheduler/deployment_runner.h"
#include "tests/sim/number_tokenizer.h"

namespace packtrain {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kTokens = 1536;

DeploymentPlan Plan(int stages) {
  DeploymentPlan plan;
  plan.name = absl::StrCat("bench-", getpid(), "-", stages);
  plan.model_path = "fake:";
  plan.hidden_dim = 4;
  plan.context_length = 4096;
  plan.num_slots = 4;
  plan.num_pages = 256;
  plan.max_tokens = 128;
  for (int i = 0; i < stages; ++i) {
    WorkerPlan worker;
    worker.name = absl::StrCat("stage", i);
    worker.device = "cpu";
    worker.threads = 1;
    worker.layers = {i, i + 1};
    plan.workers.push_back(worker);
  }
  return plan;
}

FleetOptions Options() {
  FleetOptions options;
  options.worker_binary = SiblingBinary("fake_worker");
  options.create_segments = false;
  return options;
}

void Print(const std::string& what, std::vector<double> us) {
  std::sort(us.begin(), us.end());
  std::printf("%-52s median %6.0f us   p99 %6.0f us\n", what.c_str(), us[us.size() / 2],
              us[us.size() * 99 / 100]);
}

// Tokens of quick steps come several at a time: means of so many.
constexpr int kTokensAveraged = 64;

// Takes the time that tokens need.
class TimingSink : public GenerationSink {
 public:
  void OnPromptDone(PromptResult) override {}
  void OnToken(TokenEvent) override {
    if (tokens_++ % kTokensAveraged != 0) return;
    const Clock::time_point now = Clock::now();
    if (last_ != Clock::time_point()) {
      us.push_back(std::chrono::duration<double, std::micro>(now - last_).count() /
                   kTokensAveraged);
    }
    last_ = now;
  }
  void OnFinish(GenerationResult) override {
    finished.store(true);
    finished.notify_one();
  }

  std::vector<double> us;
  std::atomic<bool> finished = false;

 private:
  int tokens_ = 0;
  Clock::time_point last_;
};

void BenchWhole(int stages) {
  FleetPipeline fleet(Plan(stages), Options());
  const absl::Status status = fleet.Start();
  CHECK_MSG(status.ok(), std::string(status.message()));
  DeploymentRunner runner({}, std::make_unique<NumberTokenizer>(), nullptr, {});
  runner.Start(&fleet);
  while (runner.state() != DeploymentState::kReady) std::this_thread::yield();
  auto sink = std::make_shared<TimingSink>();
  GenerationRequest request{
      .prompt = std::vector<TokenId>(50, 1), .sampling = {}, .max_tokens = kTokens};
  request.ignore_eos = true;
  CHECK(runner.Submit(std::move(request), sink).ok());
  sink->finished.wait(false);
  CHECK(sink->us.size() + 1 == kTokens / kTokensAveraged);
  Print(absl::StrCat("scheduler, fleet, ", stages, " stages: a token"), sink->us);
  // Results come as long as the fleet lives.
  fleet.Stop();
}

// Each step is submitted when the one before has come back.
void BenchFleet(int stages) {
  FleetPipeline fleet(Plan(stages), Options());
  std::atomic<uint64_t> done = 0;
  fleet.SetResultCallback([&](StepResult result) {
    CHECK_MSG(result.status.ok(), std::string(result.status.message()));
    done.store(result.id);
    done.notify_one();
  });
  const absl::Status status = fleet.Start();
  CHECK_MSG(status.ok(), std::string(status.message()));
  std::vector<double> us;
  for (uint64_t id = 1; id <= kTokens; ++id) {
    StepSequence s;
    s.start = static_cast<int32_t>(id) - 1;
    if (id == 1) s.begin.emplace();
    s.tokens = {1};
    s.first_page = (s.start + kPagePositions - 1) / kPagePositions;
    if (s.start % kPagePositions == 0) s.pages = {s.first_page};
    s.output = StepOutputKind::kSample;
    const Clock::time_point begin = Clock::now();
    fleet.Submit({Step{id, {std::move(s)}}});
    done.wait(id - 1);
    us.push_back(std::chrono::duration<double, std::micro>(Clock::now() - begin).count());
  }
  Print(absl::StrCat("fleet, ", stages, " stages: a step there and back"), us);
}

}  // namespace
}  // namespace packtrain

int main() {
  for (const int stages : {1, 2}) {
    packtrain::BenchFleet(stages);
    packtrain::BenchWhole(stages);
  }
  return 0;
}

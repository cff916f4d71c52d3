// Aim: whole pipelines of worker processes give the tokens of the sequential reference, over any
// number of stages, with steps in flight, and go on after a worker's death. Method: real processes
// with fake stages whose tokens depend on every page, slot and link being handled right.

#include "coordinator/fleet/fleet_pipeline.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include <condition_variable>
#include <filesystem>
#include <fstream>
#include <map>
#include <mutex>
#include <thread>

#include "absl/strings/str_cat.h"
#include "coordinator/fleet/fleet_worker.h"
#include "tests/support/fake_stage.h"
#include "tests/support/test_files.h"

namespace packtrain {
namespace {

constexpr int kLayers = 8;

DeploymentPlan MakePlan(int stages, const std::string& options = "fake:") {
  DeploymentPlan plan;
  plan.name = absl::StrCat("test-", getpid());
  plan.model_path = options;
  plan.hidden_dim = 4;
  plan.context_length = 1024;
  plan.num_slots = 4;
  plan.num_pages = 64;
  plan.max_tokens = 128;
  for (int i = 0; i < stages; ++i) {
    WorkerPlan worker;
    worker.name = absl::StrCat("stage", i);
    worker.device = "cpu";
    worker.threads = 1;
    worker.layers = {kLayers * i / stages, kLayers * (i + 1) / stages};
    plan.workers.push_back(worker);
  }
  return plan;
}

FleetOptions Options() {
  FleetOptions options;
  options.worker_binary = std::string(PACKTRAIN_BINARY_DIR) + "/tests/fake_worker";
  options.create_segments = false;
  options.step_timeout = std::chrono::seconds(5);
  return options;
}

// Runs a fleet and collects results.
class Runner {
 public:
  explicit Runner(DeploymentPlan plan, FleetOptions options = Options()) {
    options.slots_lost = [this] { Count(&slots_lost_); };
    options.state = [this](FleetState state, const std::string& reason) {
      std::lock_guard lock(mutex_);
      states_.push_back(state);
      reason_ = reason;
      changed_.notify_all();
    };
    fleet_ = std::make_unique<FleetPipeline>(std::move(plan), std::move(options));
    fleet_->SetResultCallback([this](StepResult result) {
      std::lock_guard lock(mutex_);
      order_.push_back(result.id);
      results_[result.id] = std::move(result);
      changed_.notify_all();
    });
  }
  FleetPipeline& fleet() { return *fleet_; }

  uint64_t Submit(std::vector<StepSequence> sequences) {
    fleet_->Submit({Step{++last_id_, std::move(sequences)}});
    return last_id_;
  }
  StepResult Wait(uint64_t id) {
    std::unique_lock lock(mutex_);
    const bool in_time =
        changed_.wait_for(lock, std::chrono::seconds(60), [&] { return results_.contains(id); });
    EXPECT_TRUE(in_time) << "step " << id << " has no result";
    return in_time ? results_[id] : StepResult{};
  }
  bool WaitSlotsLost(int count) {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, std::chrono::seconds(60), [&] { return slots_lost_ >= count; });
  }
  bool WaitReady() {
    for (int i = 0; i < 600 && fleet_->state() != FleetState::kReady; ++i) {
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
    return fleet_->state() == FleetState::kReady;
  }
  std::vector<uint64_t> order() {
    std::lock_guard lock(mutex_);
    return order_;
  }

 private:
  void Count(int* counter) {
    std::lock_guard lock(mutex_);
    ++*counter;
    changed_.notify_all();
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::map<uint64_t, StepResult> results_;
  std::vector<uint64_t> order_;
  std::vector<FleetState> states_;
  std::string reason_;
  int slots_lost_ = 0;
  uint64_t last_id_ = 0;
  std::unique_ptr<FleetPipeline> fleet_;
};

// Pages 16 * slot onwards belong to the slot.
StepSequence Prefill(int slot, std::vector<TokenId> tokens) {
  StepSequence s;
  s.slot = slot;
  s.begin.emplace();
  for (size_t i = 0; i * kPagePositions < tokens.size(); ++i) {
    s.pages.push_back(16 * slot + static_cast<int>(i));
  }
  s.tokens = std::move(tokens);
  s.output = StepOutputKind::kSample;
  return s;
}

StepSequence Decode(int slot, int position, uint64_t from_step) {
  StepSequence s;
  s.slot = slot;
  s.start = position;
  s.token_from_step = from_step;
  s.first_page = (position + kPagePositions - 1) / kPagePositions;
  if (position % kPagePositions == 0) s.pages.push_back(16 * slot + position / kPagePositions);
  s.output = StepOutputKind::kSample;
  return s;
}

std::vector<TokenId> Prompt(int seed, int length) {
  std::vector<TokenId> tokens;
  for (int i = 0; i < length; ++i) tokens.push_back((seed * 31 + i * 17) % kFakeVocab);
  return tokens;
}

// Two sequences, all steps submitted at once: tokens are forwarded from step to step. The outcome
// of each is compared with the reference.
void GenerateAndCheck(Runner* runner, int steps, int expert_layer = 1 << 20) {
  std::vector<std::vector<TokenId>> ids = {Prompt(1, 60), Prompt(2, 9)};
  std::vector<uint64_t> step_ids = {runner->Submit({Prefill(0, ids[0]), Prefill(1, ids[1])})};
  for (int i = 0; i < steps; ++i) {
    step_ids.push_back(
        runner->Submit({Decode(0, 60 + i, step_ids.back()), Decode(1, 9 + i, step_ids.back())}));
  }
  for (const uint64_t id : step_ids) {
    const StepResult result = runner->Wait(id);
    ASSERT_TRUE(result.status.ok()) << result.status;
    ASSERT_EQ(result.outputs.size(), 2u);
    for (size_t s = 0; s < 2; ++s) {
      ASSERT_EQ(result.outputs[s].token, FakeNextToken(ids[s], kLayers, expert_layer))
          << "step " << id;
      ids[s].push_back(result.outputs[s].token);
    }
  }
}

class FleetPipelineTest : public testing::TestWithParam<int> {};

TEST_P(FleetPipelineTest, TokensAreThoseOfTheReferenceWithAllStepsInFlight) {
  Runner runner(MakePlan(GetParam()));
  const absl::Status status = runner.fleet().Start();
  ASSERT_TRUE(status.ok()) << status;
  GenerateAndCheck(&runner, 80);
  const std::vector<uint64_t> order = runner.order();
  EXPECT_TRUE(std::is_sorted(order.begin(), order.end()));
}

INSTANTIATE_TEST_SUITE_P(Stages, FleetPipelineTest, testing::Values(1, 2, 3, 4));

TEST(FleetPipelineLinkTest, TokensAreTheSameOverPinnedGrpc) {
  DeploymentPlan plan = MakePlan(3);
  plan.links.push_back({"*", "*", "grpc"});
  Runner runner(plan);
  ASSERT_TRUE(runner.fleet().Start().ok());
  GenerateAndCheck(&runner, 40);
}

TEST(FleetPipelineLinkTest, APinThatCannotJoinTheTwoIsRefused) {
  DeploymentPlan plan = MakePlan(2);
  plan.links.push_back({"stage0", "stage1", "nccl"});
  Runner runner(plan);
  EXPECT_EQ(runner.fleet().Start().code(), absl::StatusCode::kInvalidArgument);
}

TEST(FleetPipelineStartTest, AMissingWorkerProgramIsNamed) {
  FleetOptions options = Options();
  options.worker_binary = "/nonexistent/worker";
  Runner runner(MakePlan(1), options);
  const absl::Status status = runner.fleet().Start();
  EXPECT_NE(std::string(status.message()).find("/nonexistent/worker"), std::string::npos) << status;
  EXPECT_EQ(runner.fleet().state(), FleetState::kFailed);
}

DeploymentPlan WithExperts(DeploymentPlan plan) {
  plan.model_path += "expert_layer=3";
  for (int i = 0; i < 2; ++i) {
    WorkerPlan worker;
    worker.name = absl::StrCat("experts", i);
    worker.device = "cpu";
    worker.role = WorkerRole::kExperts;
    worker.threads = 1;
    worker.expert_layers = {i == 0 ? LayerRange{3, 5} : LayerRange{5, kLayers}};
    plan.workers.push_back(worker);
  }
  return plan;
}

class FleetExpertsTest : public testing::TestWithParam<std::string> {};

TEST_P(FleetExpertsTest, TwoExpertsWorkersServeTwoStages) {
  DeploymentPlan plan = WithExperts(MakePlan(2));
  if (!GetParam().empty()) plan.links.push_back({"*", "*", GetParam()});
  Runner runner(plan);
  const absl::Status status = runner.fleet().Start();
  ASSERT_TRUE(status.ok()) << status;
  GenerateAndCheck(&runner, 20, /*expert_layer=*/3);
}
INSTANTIATE_TEST_SUITE_P(Transports, FleetExpertsTest, testing::Values("", "grpc"));

// Children of this process that run a worker.
std::vector<pid_t> Workers() {
  std::vector<pid_t> pids;
  for (const auto& task : std::filesystem::directory_iterator("/proc/self/task")) {
    std::ifstream in(task.path() / "children");
    for (pid_t pid = 0; in >> pid;) pids.push_back(pid);
  }
  std::sort(pids.begin(), pids.end());
  return pids;
}

class FleetFailureTest : public testing::TestWithParam<std::tuple<int, int>> {};

// Kills or stops one of three stages amid steps: every step gets a result, and after the slots were
// reported lost the same work gives the same tokens.
TEST_P(FleetFailureTest, AWorkerThatDiesOrHangsIsReplacedAndNothingHangs) {
  const auto [victim, signal] = GetParam();
  Runner runner(MakePlan(3, "fake:sleep_us=2000"));
  ASSERT_TRUE(runner.fleet().Start().ok());
  const std::vector<pid_t> workers = Workers();
  ASSERT_EQ(workers.size(), 3u);
  std::vector<uint64_t> ids = {runner.Submit({Prefill(0, Prompt(1, 60))})};
  for (int i = 0; i < 100; ++i) ids.push_back(runner.Submit({Decode(0, 60 + i, ids.back())}));
  ASSERT_TRUE(runner.Wait(ids[3]).status.ok());
  kill(workers[static_cast<size_t>(victim)], signal);
  int failed = 0;
  for (const uint64_t id : ids) failed += !runner.Wait(id).status.ok();
  EXPECT_GT(failed, 0);
  ASSERT_TRUE(runner.WaitSlotsLost(1));
  ASSERT_TRUE(runner.WaitReady()) << runner.fleet().reason();
  GenerateAndCheck(&runner, 20);
}

INSTANTIATE_TEST_SUITE_P(Victims, FleetFailureTest,
                         testing::Combine(testing::Values(0, 1, 2),
                                          testing::Values(SIGKILL, SIGSTOP)));

TEST(FleetFailureTest, AStepThatContinuesALostSlotFailsClearly) {
  Runner runner(MakePlan(2));
  ASSERT_TRUE(runner.fleet().Start().ok());
  const uint64_t id = runner.Submit({Decode(0, 0, 0)});
  const StepResult result = runner.Wait(id);
  EXPECT_EQ(result.status.code(), absl::StatusCode::kFailedPrecondition) << result.status;
  GenerateAndCheck(&runner, 5);
}

TEST(FleetFailureTest, AnExpertsWorkerThatDiesIsReplaced) {
  Runner runner(WithExperts(MakePlan(2)));
  ASSERT_TRUE(runner.fleet().Start().ok());
  kill(Workers().back(), SIGKILL);
  ASSERT_TRUE(runner.WaitSlotsLost(1));
  ASSERT_TRUE(runner.WaitReady()) << runner.fleet().reason();
  GenerateAndCheck(&runner, 5, /*expert_layer=*/3);
}

TEST(FleetStopTest, StopEndsAllWorkersAndFailsStepsInFlight) {
  Runner runner(MakePlan(3, "fake:sleep_us=20000"));
  ASSERT_TRUE(runner.fleet().Start().ok());
  uint64_t id = runner.Submit({Prefill(0, Prompt(1, 9))});
  for (int i = 0; i < 50; ++i) id = runner.Submit({Decode(0, 9 + i, id)});
  runner.fleet().Stop();
  EXPECT_EQ(runner.Wait(id).status.code(), absl::StatusCode::kCancelled);
  EXPECT_TRUE(Workers().empty());
}

TEST(FleetStopTest, StopEndsALoadThatIsUnderWay) {
  Runner runner(MakePlan(2, "fake:load_ms=3600000"));
  std::thread starter([&] { EXPECT_FALSE(runner.fleet().Start().ok()); });
  while (Workers().size() < 2) std::this_thread::sleep_for(std::chrono::milliseconds(5));
  runner.fleet().Stop();
  starter.join();
  EXPECT_TRUE(Workers().empty());
}

TEST(FleetStopTest, AWorkerThatHangsDoesNotKeepStopFromEnding) {
  Runner runner(MakePlan(2));
  ASSERT_TRUE(runner.fleet().Start().ok());
  kill(Workers().back(), SIGSTOP);
  runner.fleet().Stop();
  EXPECT_TRUE(Workers().empty());
}

// One worker, its stream and its process.
TEST(FleetWorkerTest, ShutdownOverTheStreamEndsTheProcessInOrder) {
  TempDir dir;
  WorkerPlan plan;
  plan.name = "stage0";
  plan.device = "cpu";
  FleetWorker worker(plan, {.deployment = "test",
                            .binary = PACKTRAIN_BINARY_DIR "/tests/fake_worker",
                            .socket_directory = dir.path()});
  const absl::Status status =
      worker.Start(1, {.message = [](const v1::WorkerMessage&) {}, .lost = [](absl::Status) {}},
                   std::chrono::seconds(20), [] { return true; });
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_FALSE(worker.ended());
  worker.Shutdown();
  for (int i = 0; i < 1000 && !worker.ended(); ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  EXPECT_EQ(worker.Diagnose("runs"), "exited with status 0");
}

}  // namespace
}  // namespace packtrain

// Aim: the demo models give the same greedy tokens in one worker process, over several stages, with
// an experts worker, over gRPC and with a stage elsewhere; and a replaced worker goes on from its
// weight segment. Method: real worker processes, prompt in two chunks, then steps whose tokens are
// forwarded.

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#include <condition_variable>
#include <filesystem>
#include <fstream>
#include <map>
#include <mutex>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/model/config.h"
#include "common/weights/gguf.h"
#include "coordinator/fleet/fleet_pipeline.h"
#include "coordinator/fleet/worker_process.h"

namespace packtrain {
namespace {

constexpr int kPromptTokens = 90;
constexpr int kDecodeSteps = 24;

struct Form {
  int stages = 1;
  bool experts_worker = false;
  const char* transport = "";  // "" lets the fleet choose
};

ModelConfig ConfigOf(const std::string& path) {
  const auto file = GgufFile::Open(path);
  EXPECT_TRUE(file.ok()) << file.status();
  const auto config = ReadModelConfig(**file);
  EXPECT_TRUE(config.ok()) << config.status();
  return *config;
}

DeploymentPlan MakePlan(const std::string& path, const ModelConfig& config, const Form& form) {
  DeploymentPlan plan;
  plan.name = absl::StrCat("demo-", getpid());
  plan.model_path = path;
  plan.hidden_dim = config.hidden_dim;
  plan.context_length = 512;
  plan.num_slots = 2;
  plan.num_pages = 16;
  plan.num_snapshots = config.has_recurrent_state() ? 2 : 0;
  plan.max_tokens = 64;
  for (int i = 0; i < form.stages; ++i) {
    WorkerPlan worker;
    worker.name = absl::StrCat("stage", i);
    worker.device = "cpu";
    worker.threads = 1;
    worker.layers = {config.num_layers * i / form.stages,
                     config.num_layers * (i + 1) / form.stages};
    if (!form.experts_worker) worker.resident_experts = worker.layers;
    plan.workers.push_back(worker);
  }
  if (form.experts_worker) {
    WorkerPlan worker;
    worker.name = "experts0";
    worker.device = "cpu";
    worker.role = WorkerRole::kExperts;
    worker.threads = 1;
    worker.expert_layers = {{0, config.num_layers}};
    plan.workers.push_back(worker);
  }
  if (*form.transport != '\0') plan.links.push_back({"*", "*", form.transport});
  return plan;
}

class Deployment {
 public:
  explicit Deployment(DeploymentPlan plan) {
    FleetOptions options;
    options.worker_binary = std::string(PACKTRAIN_BINARY_DIR) + "/bin/packtrain-worker";
    options.slots_lost = [this] {
      std::lock_guard lock(mutex_);
      ++slots_lost_;
      changed_.notify_all();
    };
    options.progress = [this](const std::string& worker, uint64_t done, uint64_t) {
      std::lock_guard lock(mutex_);
      bytes_read_[worker] = done;
    };
    options.state = [this](FleetState state, const std::string&) {
      std::lock_guard lock(mutex_);
      state_ = state;
      changed_.notify_all();
    };
    fleet_ = std::make_unique<FleetPipeline>(std::move(plan), std::move(options));
    fleet_->SetResultCallback([this](StepResult result) {
      std::lock_guard lock(mutex_);
      results_[result.id] = std::move(result);
      changed_.notify_all();
    });
  }
  absl::Status Start() { return fleet_->Start(); }
  bool WaitRecovered() {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, std::chrono::seconds(60),
                             [&] { return slots_lost_ > 0 && state_ == FleetState::kReady; });
  }

  // What each worker has read from the model's file since it was last asked.
  std::map<std::string, uint64_t> TakeBytesRead() {
    std::lock_guard lock(mutex_);
    return std::exchange(bytes_read_, {});
  }

  std::vector<TokenId> Generate() {
    std::vector<uint64_t> ids;
    for (int start = 0; start < kPromptTokens;) {
      StepSequence s;
      const int rows = std::min(50, kPromptTokens - start);
      s.start = start;
      if (start == 0) {
        s.begin.emplace();
        s.begin->sampling.temperature = 0;
        s.begin->prompt_tokens = kPromptTokens;
        s.pages = {3, 1};
      }
      s.first_page = start == 0 ? 0 : 2;
      for (int i = 0; i < rows; ++i) s.tokens.push_back(5 + (start + i) * 37 % 400);
      start += rows;
      if (start == kPromptTokens) s.output = StepOutputKind::kSample;
      ids = {Submit(std::move(s))};
    }
    for (int i = 0; i < kDecodeSteps; ++i) {
      StepSequence s;
      s.start = kPromptTokens + i;
      s.first_page = 2;
      s.token_from_step = ids.back();
      s.output = StepOutputKind::kSample;
      ids.push_back(Submit(std::move(s)));
    }
    std::vector<TokenId> tokens;
    for (const uint64_t id : ids) {
      std::unique_lock lock(mutex_);
      EXPECT_TRUE(changed_.wait_for(lock, std::chrono::seconds(100),
                                    [&] { return results_.contains(id); }));
      EXPECT_TRUE(results_[id].status.ok()) << results_[id].status;
      for (const SequenceOutput& o : results_[id].outputs) tokens.push_back(o.token);
    }
    return tokens;
  }

 private:
  uint64_t Submit(StepSequence s) {
    Step step;
    step.id = ++last_id_;
    step.sequences.push_back(std::move(s));
    fleet_->Submit({std::move(step)});
    return last_id_;
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::map<uint64_t, StepResult> results_;
  std::map<std::string, uint64_t> bytes_read_;
  FleetState state_ = FleetState::kStarting;
  int slots_lost_ = 0;
  uint64_t last_id_ = 0;
  std::unique_ptr<FleetPipeline> fleet_;
};

class DemoPipelineTest : public testing::TestWithParam<const char*> {};

TEST_P(DemoPipelineTest, EveryFormOfTheDeploymentGivesTheSameTokens) {
  const std::string path = std::string(PACKTRAIN_SOURCE_DIR "/deploy/demo/") + GetParam();
  const ModelConfig config = ConfigOf(path);
  std::vector<TokenId> wanted;
  for (const Form& form : {Form{1}, Form{2}, Form{3, true}, Form{2, true, "grpc"}}) {
    SCOPED_TRACE(absl::StrCat(form.stages, " stages, experts worker ", form.experts_worker, " ",
                              form.transport));
    Deployment deployment(MakePlan(path, config, form));
    const absl::Status status = deployment.Start();
    ASSERT_TRUE(status.ok()) << status;
    const std::vector<TokenId> tokens = deployment.Generate();
    ASSERT_EQ(tokens.size(), size_t{kDecodeSteps + 1});
    if (wanted.empty()) wanted = tokens;
    EXPECT_EQ(tokens, wanted);
  }
}

TEST_P(DemoPipelineTest, AReplacedWorkerServesFromItsSegment) {
  const std::string path = std::string(PACKTRAIN_SOURCE_DIR "/deploy/demo/") + GetParam();
  Deployment deployment(MakePlan(path, ConfigOf(path), {2, true, ""}));
  const absl::Status status = deployment.Start();
  ASSERT_TRUE(status.ok()) << status;
  const std::vector<TokenId> wanted = deployment.Generate();
  const std::map<std::string, uint64_t> read = deployment.TakeBytesRead();
  ASSERT_EQ(read.size(), 3u);
  for (const auto& [worker, bytes] : read) EXPECT_GT(bytes, 0u) << worker;
  std::vector<pid_t> workers;
  for (const auto& task : std::filesystem::directory_iterator("/proc/self/task")) {
    std::ifstream in(task.path() / "children");
    for (pid_t pid = 0; in >> pid;) workers.push_back(pid);
  }
  ASSERT_EQ(workers.size(), 3u);
  kill(workers[1], SIGKILL);
  ASSERT_TRUE(deployment.WaitRecovered());
  EXPECT_EQ(deployment.Generate(), wanted);
  EXPECT_TRUE(deployment.TakeBytesRead().empty()) << "the replacement read the file again";
}

// A worker that somebody else has started, as on another host.
class RemoteWorker {
 public:
  RemoteWorker() {
    // A port that was free a moment ago.
    const int probe = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof address;
    EXPECT_EQ(bind(probe, reinterpret_cast<sockaddr*>(&address), size), 0);
    EXPECT_EQ(getsockname(probe, reinterpret_cast<sockaddr*>(&address), &size), 0);
    close(probe);
    address_ = absl::StrCat("127.0.0.1:", ntohs(address.sin_port));
    auto process =
        WorkerProcess::Start(PACKTRAIN_BINARY_DIR "/bin/packtrain-worker",
                             {"--listen", address_, "--device", "cpu", "--insecure"}, {});
    EXPECT_TRUE(process.ok()) << process.status();
    process_ = *std::move(process);
  }
  const std::string& address() const { return address_; }
  std::string Ended() { return process_->Ended(); }

 private:
  std::string address_;
  std::unique_ptr<WorkerProcess> process_;
};

TEST_P(DemoPipelineTest, AStageElsewhereGivesTheSameTokensAndOutlivesTheDeployment) {
  const std::string path = std::string(PACKTRAIN_SOURCE_DIR "/deploy/demo/") + GetParam();
  const ModelConfig config = ConfigOf(path);
  std::vector<TokenId> wanted;
  {
    Deployment here(MakePlan(path, config, {1}));
    ASSERT_TRUE(here.Start().ok());
    wanted = here.Generate();
  }
  RemoteWorker remote;
  for (int round = 0; round < 2; ++round) {
    // Both are on this host, so it takes a pin to have the data on TCP too.
    DeploymentPlan plan = MakePlan(path, config, {2, false, "grpc"});
    plan.workers[1].address = remote.address();
    plan.insecure = true;
    Deployment deployment(std::move(plan));
    const absl::Status status = deployment.Start();
    ASSERT_TRUE(status.ok()) << status;
    EXPECT_EQ(deployment.Generate(), wanted);
    EXPECT_EQ(remote.Ended(), "");
  }
}

INSTANTIATE_TEST_SUITE_P(
    Models, DemoPipelineTest, testing::Values("primary.gguf", "sidecar.gguf"),
    [](const auto& param) {
      return std::string(param.param).substr(0, std::string(param.param).find('.'));
    });

}  // namespace
}  // namespace packtrain

// doctor and plan as a user runs them, on a machine without a GPU.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <nlohmann/json.hpp>

namespace packtrain {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

struct Outcome {
  int status = -1;
  std::string output;
};

class DoctorPlanTest : public testing::Test {
 protected:
  void SetUp() override {
    cache_ = testing::TempDir() + "doctor_plan_test." + std::to_string(getpid());
    fs::remove_all(cache_);
    fs::create_directories(cache_);
  }
  void TearDown() override { fs::remove_all(cache_); }

  Outcome Packtrain(const std::string& arguments) {
    const std::string command = "XDG_CACHE_HOME=" + cache_ +
                                " " PACKTRAIN_BINARY_DIR "/bin/packtrain " + arguments + " 2>&1";
    Outcome run;
    FILE* pipe = popen(command.c_str(), "r");
    if (pipe == nullptr) return run;
    std::array<char, 4096> buffer{};
    while (const size_t got = fread(buffer.data(), 1, buffer.size(), pipe)) {
      run.output.append(buffer.data(), got);
    }
    const int status = pclose(pipe);
    run.status = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
    return run;
  }

  std::string cache_;
};

const std::string kDemo = PACKTRAIN_SOURCE_DIR "/deploy/demo/";

TEST_F(DoctorPlanTest, DoctorKeepsItsFactsAndPlanReadsThem) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "measuring instrumented kernels takes longer than doctor waits";
#endif
  const Outcome doctor = Packtrain("doctor --json --models " + kDemo);
  ASSERT_EQ(doctor.status, 0) << doctor.output;
  const auto report = nlohmann::json::parse(doctor.output);
  EXPECT_GE(report["facts"]["cpu"]["cores"].get<int>(), 1);
  EXPECT_GT(report["facts"]["memory"]["total_bytes"].get<uint64_t>(), 0u);
  // The facts are all that is left behind.
  std::vector<std::string> left;
  for (const auto& entry : fs::recursive_directory_iterator(cache_)) {
    if (entry.is_regular_file()) left.push_back(fs::relative(entry.path(), cache_));
  }
  EXPECT_THAT(left, testing::ElementsAre("packtrain/host.json"));

  const Outcome plan = Packtrain("plan --json --model " + kDemo + "primary.gguf --context 1024");
  ASSERT_EQ(plan.status, 0) << plan.output;
  const auto placement = nlohmann::json::parse(plan.output);
  EXPECT_EQ(placement["deployments"][0]["name"], "primary");
  EXPECT_EQ(placement["deployments"][0]["context"], 1024);
  EXPECT_GT(placement["deployments"][0]["predicted"]["decode_tokens_per_s"].get<double>(), 0);
}

TEST_F(DoctorPlanTest, PlanWorksForARigThatIsNotThisMachine) {
  const std::string rig = " --rig " PACKTRAIN_SOURCE_DIR "/configs/rigs/quad-3090.yaml";
  const Outcome plan =
      Packtrain("plan --model " + kDemo + "primary.gguf --sidecar " + kDemo + "sidecar.gguf" + rig);
  ASSERT_EQ(plan.status, 0) << plan.output;
  EXPECT_THAT(plan.output, HasSubstr("Plan for quad-3090"));
  // The card behind the riser is the sidecar's.
  EXPECT_THAT(plan.output, testing::ContainsRegex("sidecar \\(sidecar\\)[^\n]*\n[^\n]*\n"
                                                  "  stage 0 box1/cuda:3"));
}

TEST_F(DoctorPlanTest, BadInputIsRefusedInOneLine) {
  const std::string model = "plan --model " + kDemo + "primary.gguf";
  const std::string rig = " --rig " PACKTRAIN_SOURCE_DIR "/configs/rigs/cpu-only.yaml";
  const std::pair<std::string, int> kCases[] = {
      {"plan", 2},
      {"plan --model /does/not/exist.gguf", 1},
      {model + " --rig /does/not/exist.yaml", 1},
      {model + " --kv-cache q3" + rig, 2},
  };
  for (const auto& [arguments, status] : kCases) {
    const Outcome run = Packtrain(arguments);
    EXPECT_EQ(run.status, status) << arguments;
    EXPECT_EQ(std::count(run.output.begin(), run.output.end(), '\n'), 1) << run.output;
    EXPECT_THAT(run.output, testing::StartsWith("packtrain: "));
  }
}

}  // namespace
}  // namespace packtrain

// doctor and plan as a user runs them, on a machine without a GPU.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sched.h>
#include <sys/sysinfo.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <nlohmann/json.hpp>
#include <string>

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
    return Run("XDG_CACHE_HOME=" + cache_ + " " PACKTRAIN_BINARY_DIR "/bin/packtrain " + arguments);
  }

  static Outcome Run(std::string command) {
    command += " 2>&1";
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

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool kInstrumented = true;
#else
constexpr bool kInstrumented = false;
#endif
constexpr char kTooSlow[] = "measuring instrumented kernels takes longer than doctor waits";

const std::string kDemo = PACKTRAIN_SOURCE_DIR "/deploy/demo/";

TEST_F(DoctorPlanTest, DoctorKeepsItsFactsAndPlanReadsThem) {
  if (kInstrumented) GTEST_SKIP() << kTooSlow;
  const Outcome doctor = Packtrain("doctor --json --models " + kDemo);
  ASSERT_EQ(doctor.status, 0) << doctor.output;
  const auto report = nlohmann::json::parse(doctor.output);
  EXPECT_GE(report["facts"]["cpu"]["cores"].get<int>(), 1);
  EXPECT_GT(report["facts"]["memory"]["total_bytes"].get<uint64_t>(), 0u);

  const Outcome plan = Packtrain("plan --json --model " + kDemo + "primary.gguf --context 1024");
  ASSERT_EQ(plan.status, 0) << plan.output;
  const auto placement = nlohmann::json::parse(plan.output);
  EXPECT_EQ(placement["deployments"][0]["name"], "primary");
  EXPECT_EQ(placement["deployments"][0]["context"], 1024);
  EXPECT_GT(placement["deployments"][0]["predicted"]["decode_tokens_per_s"].get<double>(), 0);
}

// What a program could change of this machine: {name: contents}, files of `folder` by size and
// time.
std::map<std::string, std::string> StateOf(const std::string& folder) {
  std::map<std::string, std::string> state;
  const auto add = [&](const fs::path& path) {
    std::ifstream in(path);
    if (in) std::getline(in, state[path]);
  };
  for (int cpu = 0; cpu < get_nprocs_conf(); ++cpu) {
    const std::string at = "/sys/devices/system/cpu/cpu" + std::to_string(cpu) + "/";
    for (const char* file : {"online", "cpufreq/scaling_governor", "cpufreq/scaling_max_freq"}) {
      add(at + file);
    }
  }
  for (const char* file : {"enabled", "defrag", "shmem_enabled"}) {
    add(std::string("/sys/kernel/mm/transparent_hugepage/") + file);
  }
  for (const char* file : {"vm/nr_hugepages", "vm/swappiness", "vm/overcommit_memory",
                           "kernel/numa_balancing", "kernel/sched_rt_runtime_us"}) {
    add(std::string("/proc/sys/") + file);
  }
  for (const auto& entry : fs::directory_iterator("/proc")) {
    // Processes that were started by it and live on.
    std::ifstream in(entry.path() / "environ", std::ios::binary);
    const std::string environment(std::istreambuf_iterator<char>(in), {});
    if (environment.find("HOME=" + folder) != std::string::npos) {
      state["process " + entry.path().filename().string()] = "";
    }
  }
  cpu_set_t cpus;
  CPU_ZERO(&cpus);
  if (sched_getaffinity(0, sizeof cpus, &cpus) == 0) {
    state["affinity"] = std::to_string(CPU_COUNT(&cpus));
  }
  for (const auto& entry : fs::recursive_directory_iterator(folder)) {
    if (!entry.is_regular_file()) continue;
    state[fs::relative(entry.path(), folder)] =
        std::to_string(entry.file_size()) + " " +
        std::to_string(entry.last_write_time().time_since_epoch().count());
  }
  return state;
}

// The facts are all that it leaves, with the models that it reads as they were.
TEST_F(DoctorPlanTest, DoctorChangesNothingElse) {
  if (kInstrumented) GTEST_SKIP() << kTooSlow;
  for (const char* name : {"/home", "/tmp", "/here", "/models"})
    fs::create_directory(cache_ + name);
  fs::copy(kDemo + "sidecar.gguf", cache_ + "/models");
  const std::string scratch = fs::canonical(cache_);
  const auto before = StateOf(scratch);
  const Outcome doctor =
      Run("cd " + scratch + "/here && env -u XDG_CACHE_HOME HOME=" + scratch +
          "/home TMPDIR=" + scratch +
          "/tmp " PACKTRAIN_BINARY_DIR "/bin/packtrain doctor --models " + scratch + "/models");
  ASSERT_EQ(doctor.status, 0) << doctor.output;
  auto after = StateOf(scratch);
  EXPECT_EQ(after.erase("home/.cache/packtrain/host.json"), 1u);
  EXPECT_EQ(after, before);
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

// Limits are read from a made-up /proc and /sys, so every value that should be found is known. The
// readers of control groups are tested in worker/device/host_facts_reader_test.cc.

#include "common/base/host_limits.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

namespace packtrain {
namespace {

constexpr uint64_t kGiB = uint64_t{1} << 30;

TEST(SpinBudgetTest, NobodySpinsWhereSpinnersOutnumberTheCpusOrThereAreTwo) {
  EXPECT_EQ(SpinBudget(1, 2), 0);
  EXPECT_EQ(SpinBudget(2, 2), 0);
  EXPECT_EQ(SpinBudget(4, 2), 0);
  EXPECT_EQ(SpinBudget(4, 0), 0);
  EXPECT_EQ(SpinBudget(12, 16), 50);
  EXPECT_EQ(SpinBudget(16, 16), 50);
  EXPECT_EQ(SpinBudget(17, 16), 0);
  EXPECT_GE(UsableCpus(), 1);
}

TEST(MemoryLimitsTest, PageCacheOfTheGroupThatNobodyUsesIsNotCountedAsUsed) {
  const std::string root = testing::TempDir() + "host_limits_test." + std::to_string(getpid());
  std::filesystem::create_directories(root + "/proc/self");
  std::filesystem::create_directories(root + "/sys/fs/cgroup/a");
  std::ofstream(root + "/proc/meminfo") << "MemTotal: 9 kB\nMemAvailable:    600 kB\n";
  std::ofstream(root + "/proc/self/cgroup") << "0::/a\n";
  std::ofstream(root + "/sys/fs/cgroup/a/memory.max") << "5000\n";
  std::ofstream(root + "/sys/fs/cgroup/a/memory.current") << "4000\n";
  std::ofstream(root + "/sys/fs/cgroup/a/memory.stat") << "anon 1000\ninactive_file 2500\n";
  const MemoryLimits limits = ReadMemoryLimits(root);
  std::filesystem::remove_all(root);
  EXPECT_EQ(limits.available_bytes, 600u * 1024);
  EXPECT_EQ(limits.cgroup_bytes, 5000u);
  EXPECT_EQ(limits.cgroup_used_bytes, 1500u);
}

TEST(CheckMemoryTest, TheTighterOfHostAndControlGroupRefusesWithItsNumbers) {
  const MemoryLimits host{.available_bytes = 8 * kGiB};
  EXPECT_TRUE(CheckMemory(host, 8 * kGiB, "weights").ok());
  const absl::Status by_host = CheckMemory(host, 9 * kGiB, "weights");
  EXPECT_EQ(by_host.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(by_host.message(),
            "weights: 9.00 GiB of memory needed, 8.00 GiB of this host's are available");
  const MemoryLimits group{
      .available_bytes = 8 * kGiB, .cgroup_bytes = 6 * kGiB, .cgroup_used_bytes = kGiB};
  EXPECT_TRUE(CheckMemory(group, 5 * kGiB, "weights").ok());
  const absl::Status by_group = CheckMemory(group, 5 * kGiB + 1, "weights");
  EXPECT_EQ(by_group.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_NE(std::string(by_group.message()).find("limit of 6.00 GiB leaves 5.00 GiB"),
            std::string::npos)
      << by_group;
}

}  // namespace
}  // namespace packtrain

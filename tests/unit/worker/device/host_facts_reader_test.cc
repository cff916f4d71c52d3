// The readers run on a made-up /proc and /sys, so every value they should find is known.

#include "worker/device/host_facts_reader.h"

#include <gtest/gtest.h>
#include <sched.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <set>

#include "common/base/host_limits.h"

namespace packtrain {
namespace {

namespace fs = std::filesystem;

class HostFactsReaderTest : public testing::Test {
 protected:
  void SetUp() override {
    root_ = testing::TempDir() + "host_facts_reader_test." + std::to_string(getpid());
    fs::remove_all(root_);
  }
  void TearDown() override { fs::remove_all(root_); }

  void Write(const std::string& path, std::string_view text) {
    fs::create_directories(fs::path(root_ + path).parent_path());
    std::ofstream(root_ + path, std::ios::binary) << text;
  }

  std::string root_;
};

TEST_F(HostFactsReaderTest, AnEmptySystemLeavesEverythingUnknown) {
  const MemoryFacts memory = ReadMemoryFacts(root_);
  EXPECT_EQ(memory.total_bytes, 0u);
  EXPECT_EQ(memory.cgroup_bytes, kUnlimited);
  EXPECT_EQ(memory.private_huge_pages, "");
  EXPECT_EQ(memory.module_speed, 0);
  EXPECT_TRUE(ReadPciGpus(root_).empty());
  EXPECT_EQ(ReadCpuLimit(root_), 0);
}

TEST_F(HostFactsReaderTest, MemoryAndHugePagesAreRead) {
  Write("/proc/meminfo",
        "MemTotal:       1000 kB\nMemFree:  5 kB\nMemAvailable:    600 kB\n"
        "HugePages_Total:       7\nHugePages_Free:        3\nHugepagesize:       2048 kB\n");
  Write("/sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never\n");
  Write("/sys/kernel/mm/transparent_hugepage/shmem_enabled",
        "always within_size advise [never] deny force\n");
  const MemoryFacts memory = ReadMemoryFacts(root_);
  EXPECT_EQ(memory.total_bytes, 1000u * 1024);
  EXPECT_EQ(memory.available_bytes, 600u * 1024);
  EXPECT_EQ(memory.huge_pages, 7u);
  EXPECT_EQ(memory.huge_pages_free, 3u);
  EXPECT_EQ(memory.huge_page_bytes, 2048u * 1024);
  EXPECT_EQ(memory.private_huge_pages, "madvise");
  EXPECT_EQ(memory.shared_huge_pages, "never");
}

TEST_F(HostFactsReaderTest, TheTightestControlGroupAboveUsCounts) {
  Write("/proc/self/cgroup", "0::/outer/inner\n");
  Write("/sys/fs/cgroup/outer/inner/memory.max", "max\n");
  Write("/sys/fs/cgroup/outer/memory.max", "5000\n");
  Write("/sys/fs/cgroup/outer/memory.current", "1200\n");
  Write("/sys/fs/cgroup/outer/inner/cpu.max", "150000 100000\n");
  Write("/sys/fs/cgroup/outer/cpu.max", "max 100000\n");
  const MemoryFacts memory = ReadMemoryFacts(root_);
  EXPECT_EQ(memory.cgroup_bytes, 5000u);
  EXPECT_EQ(memory.cgroup_used_bytes, 1200u);
  EXPECT_EQ(ReadCpuLimit(root_), 1.5);
}

TEST_F(HostFactsReaderTest, AContainerSeesItsLimitsAtTheRoot) {
  Write("/proc/self/cgroup", "0::/\n");
  Write("/sys/fs/cgroup/memory.max", "4096\n");
  Write("/sys/fs/cgroup/cpu.max", "200000 100000\n");
  EXPECT_EQ(ReadMemoryFacts(root_).cgroup_bytes, 4096u);
  EXPECT_EQ(ReadCpuLimit(root_), 2);
}

TEST_F(HostFactsReaderTest, VersionOneControlGroupsAreUnderstood) {
  Write("/proc/self/cgroup", "5:memory:/a\n4:cpu,cpuacct:/a\n0::/\n");
  Write("/sys/fs/cgroup/memory/a/memory.limit_in_bytes", "9000");
  Write("/sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712");
  Write("/sys/fs/cgroup/cpu/a/cpu.cfs_quota_us", "50000");
  Write("/sys/fs/cgroup/cpu/a/cpu.cfs_period_us", "100000");
  EXPECT_EQ(ReadMemoryFacts(root_).cgroup_bytes, 9000u);
  EXPECT_EQ(ReadCpuLimit(root_), 0.5);
}

TEST_F(HostFactsReaderTest, NvidiaCardsAreFoundWithTheirLinks) {
  const auto card = [&](const std::string& pci, const char* vendor, const char* kind) {
    const std::string folder = "/sys/bus/pci/devices/" + pci + "/";
    Write(folder + "vendor", vendor);
    Write(folder + "class", kind);
    Write(folder + "current_link_speed", "8.0 GT/s PCIe\n");
    Write(folder + "max_link_speed", "16.0 GT/s PCIe\n");
    Write(folder + "current_link_width", "1\n");
    Write(folder + "max_link_width", "16\n");
    Write(folder + "numa_node", "-1\n");
  };
  card("0000:41:00.0", "0x10de\n", "0x030000\n");
  card("0000:01:00.0", "0x10de\n", "0x030200\n");
  card("0000:01:00.1", "0x10de\n", "0x040300\n");  // its sound device
  card("0000:05:00.0", "0x1002\n", "0x030000\n");  // another maker's card
  const std::vector<GpuFacts> gpus = ReadPciGpus(root_);
  ASSERT_EQ(gpus.size(), 2u);
  EXPECT_EQ(gpus[0].pci, "0000:01:00.0");
  EXPECT_EQ(gpus[1].pci, "0000:41:00.0");
  EXPECT_EQ(gpus[1].link_gt_per_s, 8);
  EXPECT_EQ(gpus[1].link_gt_per_s_max, 16);
  EXPECT_EQ(gpus[1].link_lanes, 1);
  EXPECT_EQ(gpus[1].link_lanes_max, 16);
  EXPECT_EQ(gpus[1].numa_node, -1);
  EXPECT_EQ(gpus[1].index, -1);
}

TEST_F(HostFactsReaderTest, ModuleSpeedComesFromTheFirmwareTable) {
  std::string raw(0x28, '\0');
  const auto put = [&](size_t at, int word) {
    raw[at] = static_cast<char>(word & 255);
    raw[at + 1] = static_cast<char>(word >> 8);
  };
  put(0x0C, 0x7FFF);
  put(0x15, 5600);
  put(0x20, 3600);
  Write("/sys/firmware/dmi/entries/17-0/raw", raw);
  put(0x0C, 0);  // an empty slot
  put(0x20, 800);
  Write("/sys/firmware/dmi/entries/17-1/raw", raw);
  Write("/sys/firmware/dmi/entries/17-2/raw", "short");
  const MemoryFacts memory = ReadMemoryFacts(root_);
  EXPECT_EQ(memory.modules, 1);
  EXPECT_EQ(memory.module_speed, 3600);
  EXPECT_EQ(memory.module_speed_max, 5600);
}

TEST_F(HostFactsReaderTest, ThisMachineHasCoresAndMemory) {
  const CpuFacts cpu = ReadCpuFacts();
  EXPECT_GE(cpu.cores, 1);
  EXPECT_GE(cpu.threads, cpu.cores);
  EXPECT_FALSE(cpu.numa.empty());
  const MemoryFacts memory = ReadMemoryFacts("");
  EXPECT_GT(memory.total_bytes, 0u);
  EXPECT_LE(memory.available_bytes, memory.total_bytes);
}

// What this machine has is unknown here, but every thread must get a CPU of its own.
TEST(SpreadCpusTest, GivesEveryThreadACpuOfItsOwnThatItMayUse) {
  cpu_set_t allowed;
  ASSERT_EQ(sched_getaffinity(0, sizeof allowed, &allowed), 0);
  const int all = CPU_COUNT(&allowed);
  for (int threads = 1; threads <= all; ++threads) {
    const std::vector<int> cpus = SpreadCpus(threads);
    EXPECT_EQ(std::set<int>(cpus.begin(), cpus.end()).size(), static_cast<size_t>(threads));
    for (const int cpu : cpus) EXPECT_TRUE(CPU_ISSET(static_cast<size_t>(cpu), &allowed)) << cpu;
  }
  EXPECT_TRUE(SpreadCpus(all + 1).empty());
  EXPECT_TRUE(SpreadCpus(0).empty());
}

TEST(SpreadCpusTest, KeepsToTheAffinityOfTheProcess) {
  cpu_set_t allowed, one;
  ASSERT_EQ(sched_getaffinity(0, sizeof allowed, &allowed), 0);
  int last = CPU_SETSIZE - 1;
  while (!CPU_ISSET(static_cast<size_t>(last), &allowed)) --last;
  CPU_ZERO(&one);
  CPU_SET(static_cast<size_t>(last), &one);
  ASSERT_EQ(sched_setaffinity(0, sizeof one, &one), 0);
  EXPECT_EQ(SpreadCpus(1), std::vector<int>{last});
  EXPECT_TRUE(SpreadCpus(2).empty());
  ASSERT_EQ(sched_setaffinity(0, sizeof allowed, &allowed), 0);
}

}  // namespace
}  // namespace packtrain

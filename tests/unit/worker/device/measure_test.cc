// Shape and bounds of what is measured; the figures themselves are this machine's.

#include "worker/device/measure.h"

#include <gtest/gtest.h>
#include <sched.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <thread>

#include "worker/device/measure_experts.h"
#include "worker/device/measured_types.h"
#include "worker/device/probe.h"

namespace packtrain {
namespace {

constexpr MeasureOptions kShort = {.seconds_each = 0.02, .dram_bytes = 64 << 20};

TEST(MeasureTest, DramReadIsGivenForDoublingThreadCounts) {
  const std::vector<ReadRate> rates = MeasureDramRead(3, 1ull << 30, 1 << 20, kShort);
  ASSERT_EQ(rates.size(), 3u);
  EXPECT_EQ(rates[0].threads, 1);
  EXPECT_EQ(rates[1].threads, 2);
  EXPECT_EQ(rates[2].threads, 3);
  for (const ReadRate& rate : rates) EXPECT_GT(rate.gb_per_s, 0);
}

TEST(MeasureTest, DramReadIsLeftOutWhenOnlyCachesCouldBeMeasured) {
  EXPECT_TRUE(MeasureDramRead(1, 4 << 20, 32 << 20, kShort).empty());
}

TEST(MeasureTest, KernelsAreMeasuredWithEveryTypeThatFilesAreMadeOf) {
  const CpuKernels& kernels = **SelectCpuKernels("");
  const std::vector<WeightRate> rates = MeasureWeightRates(2, 1ull << 30, 1 << 20, kernels, kShort);
  ASSERT_EQ(rates.size(), std::size(kMeasuredTypes));
  for (size_t i = 0; i < rates.size(); ++i) {
    EXPECT_EQ(rates[i].type, TypeName(kMeasuredTypes[i]));
    EXPECT_GT(rates[i].read_gb_per_s, 0) << rates[i].type;
  }
  EXPECT_TRUE(MeasureWeightRates(2, 4 << 20, 32 << 20, kernels, kShort).empty());
}

TEST(MeasureTest, PickedExpertsAreMeasuredWhereTheyComeFromMemory) {
  const CpuKernels& kernels = **SelectCpuKernels("");
  HostFacts facts;
  facts.weight_rates = {{.type = "F32"}, {.type = "IQ2_XS"}, {.type = "Q4_K"}};
  // 256 MB: room for 24 experts of Q4_K and 3 of F32.
  const MeasureOptions options = {.seconds_each = 0.02, .dram_bytes = 512 << 20};
  MeasureExperts(2, 1ull << 30, 1 << 20, kernels, options, &facts);
  EXPECT_GT(facts.experts_layer_us, 0.5);
  EXPECT_EQ(facts.experts_threads, 2);
  EXPECT_EQ(facts.weight_rates[0].experts_gb_per_s, 0);
  EXPECT_GT(facts.weight_rates[1].experts_gb_per_s, 0);
  EXPECT_GT(facts.weight_rates[2].experts_gb_per_s, 0);
}

TEST(MeasureTest, RoundTripsLeaveTheThreadWhereItMayRun) {
  cpu_set_t before, after;
  ASSERT_EQ(sched_getaffinity(0, sizeof(before), &before), 0);
  const double threads = MeasureThreadRoundTrip({});
  const double processes = MeasureProcessRoundTrip({});
  ASSERT_EQ(sched_getaffinity(0, sizeof(after), &after), 0);
  EXPECT_TRUE(CPU_EQUAL(&before, &after));
  if (CPU_COUNT(&before) < 2) {
    EXPECT_EQ(threads, 0);
    EXPECT_EQ(processes, 0);
  } else {
    // 0: the other core was busy for the whole second.
    EXPECT_GE(threads, 0);
    EXPECT_LT(threads, 1e6);
    EXPECT_GE(processes, 0);
    EXPECT_LT(processes, 1e6);
  }
}

TEST(MeasureTest, StorageIsReadFromTheLargestModelOfAFolder) {
  const std::string folder = testing::TempDir() + "measure_test." + std::to_string(getpid());
  std::filesystem::create_directories(folder);
  std::ofstream(folder + "/small.gguf") << "x";
  std::ofstream(folder + "/large.gguf") << std::string(9 << 20, 'x');
  std::ofstream(folder + "/other.bin") << std::string(20 << 20, 'x');
  const StorageFacts facts = MeasureStorageRead(folder, kShort);
  // File systems without direct reads (tmpfs before 6.6) measure nothing.
  if (!facts.file.empty()) {
    EXPECT_EQ(facts.file, folder + "/large.gguf");
    EXPECT_GT(facts.read_gb_per_s, 0);
  }
  const StorageFacts missing = MeasureStorageRead(folder + "/none", kShort);
  EXPECT_EQ(missing.file, "");
  EXPECT_EQ(missing.read_gb_per_s, 0);
  std::filesystem::remove_all(folder);
}

TEST(MeasureTest, AProbeWithoutMeasurementsKnowsTheHost) {
  const HostFacts facts = ProbeHost({.measure = false, .storage = {}});
  EXPECT_FALSE(facts.name.empty());
  EXPECT_FALSE(facts.kernel.empty());
  EXPECT_GE(facts.cpu.cores, 1);
  EXPECT_TRUE(facts.dram_read.empty());
  EXPECT_TRUE(facts.storage.empty());
}

}  // namespace
}  // namespace packtrain

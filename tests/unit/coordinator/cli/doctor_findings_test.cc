#include "coordinator/cli/doctor_findings.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace packtrain {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;

std::vector<std::string> Whats(const HostFacts& facts) {
  std::vector<std::string> whats;
  for (const Finding& f : FindFaults(facts)) {
    EXPECT_FALSE(f.fix.empty()) << f.what;
    whats.push_back(f.what);
  }
  return whats;
}

HostFacts Healthy() {
  HostFacts facts;
  facts.cpu.isa = "avx512";
  facts.cpu.cores = 8;
  facts.cpu.numa = {{.node = 0, .cores = 8, .memory_bytes = 1ull << 36}};
  facts.memory.total_bytes = facts.memory.available_bytes = 1ull << 36;
  facts.memory.private_huge_pages = "madvise";
  facts.memory.shared_huge_pages = "advise";
  facts.memory.module_speed = facts.memory.module_speed_max = 5600;
  facts.dram_read = {{1, 20}, {4, 60}, {8, 75}};
  facts.storage.resize(1);
  facts.storage[0].path = facts.storage[0].file = "/models/a.gguf";
  facts.storage[0].read_gb_per_s = 6;
  return facts;
}

TEST(DoctorFindingsTest, NothingHurtsOnAHealthyHost) { EXPECT_THAT(Whats(Healthy()), IsEmpty()); }

TEST(DoctorFindingsTest, EachFaultIsNamed) {
  const auto only = [](const HostFacts& facts) {
    const std::vector<std::string> whats = Whats(facts);
    EXPECT_EQ(whats.size(), 1u);
    return whats.empty() ? "" : whats[0];
  };
  HostFacts facts = Healthy();
  GpuFacts gpu;
  gpu.index = 3;
  gpu.link_lanes = 1;
  gpu.link_lanes_max = 16;
  facts.gpus.push_back(gpu);
  EXPECT_THAT(only(facts), HasSubstr("cuda:3 runs at x1"));

  facts = Healthy();
  gpu.link_lanes = 16;
  gpu.link_gt_per_s = gpu.link_gt_per_s_max = 16;
  gpu.to_device_gb_per_s = 6;
  facts.gpus.push_back(gpu);
  EXPECT_EQ(only(facts), "copies to cuda:3 reach 6.0 of 26.2 GB/s");
  facts.gpus[0].to_device_gb_per_s = 25;
  EXPECT_THAT(Whats(facts), IsEmpty());

  facts = Healthy();
  facts.weight_rates = {{"Q4_K", 70}, {"IQ1_M", 20}};
  EXPECT_THAT(only(facts), HasSubstr("with IQ1_M 20 GB/s"));

  facts = Healthy();
  facts.memory.module_speed = 3600;
  EXPECT_EQ(only(facts), "memory trains at 3600 of 5600 MT/s");

  facts = Healthy();
  facts.memory.private_huge_pages = "never";
  EXPECT_EQ(only(facts), "transparent huge pages are off");

  facts = Healthy();
  facts.memory.shared_huge_pages = "never";
  EXPECT_EQ(only(facts), "transparent huge pages are off for shared memory");
  facts.memory.huge_pages = 1000;
  EXPECT_THAT(Whats(facts), IsEmpty());

  facts = Healthy();
  facts.memory.cgroup_bytes = 1ull << 33;
  EXPECT_EQ(only(facts), "the control group allows 8.0 of 64.0 GiB");

  facts = Healthy();
  facts.cpu.cpu_limit = 2.5;
  EXPECT_EQ(only(facts), "the control group grants 2.5 of 8 cores");

  facts = Healthy();
  facts.storage[0].read_gb_per_s = 0.15;
  facts.storage[0].rotational = true;
  EXPECT_EQ(only(facts), "/models/a.gguf is read at 0.15 GB/s from a rotating disk");

  facts = Healthy();
  facts.dram_read = {{1, 40}, {2, 74}, {8, 75}};
  EXPECT_THAT(only(facts), HasSubstr("2 of 8 cores read all that memory gives"));
}

}  // namespace
}  // namespace packtrain

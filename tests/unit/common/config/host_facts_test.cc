#include "common/config/host_facts.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace packtrain {
namespace {

using ::testing::HasSubstr;

HostFacts Example() {
  HostFacts facts;
  facts.name = "box1";
  facts.cpu.model = "Ryzen 9";
  facts.cpu.isa = "avx512";
  facts.cpu.cores = 12;
  facts.cpu.threads = 24;
  facts.cpu.caches.push_back({.level = 3, .bytes = 32 << 20, .cores = 6});
  facts.cpu.numa.push_back({.node = 0, .cores = 12, .memory_bytes = 1ull << 37});
  facts.memory.total_bytes = 1ull << 37;
  facts.memory.available_bytes = 100ull << 30;
  facts.memory.locked_bytes = 8 << 20;
  facts.memory.private_huge_pages = "madvise";
  facts.dram_read = {{1, 20.5}, {12, 80}};
  facts.storage.push_back({.path = "/models", .file = "/models/a.gguf", .read_gb_per_s = 6.5});
  GpuFacts gpu;
  gpu.name = "RTX 3090";
  gpu.link_lanes = 8;
  gpu.peers = {1, 2};
  facts.gpus.push_back(gpu);
  return facts;
}

TEST(HostFactsTest, JsonKeepsEveryField) {
  const HostFacts facts = Example();
  const std::string json = HostFactsToJson(facts);
  const auto again = HostFactsFromJson(json);
  ASSERT_TRUE(again.ok()) << again.status();
  // The writer names every field, so equal text is equal facts.
  EXPECT_EQ(HostFactsToJson(*again), json);
  EXPECT_EQ(again->gpus[0].peers, (std::vector<int>{1, 2}));
  EXPECT_EQ(again->memory.cgroup_bytes, kUnlimited);
  EXPECT_EQ(again->memory.locked_bytes, uint64_t{8} << 20);
  EXPECT_EQ(again->cpu.numa[0].memory_bytes, 1ull << 37);
}

TEST(HostFactsTest, WrongJsonIsRefusedNamingThePlace) {
  const auto message = [](std::string_view json) {
    return std::string(HostFactsFromJson(json).status().message());
  };
  EXPECT_THAT(message("{\"gpus\": [{}, {\"link_lanes\": \"x8\"}]}"),
              HasSubstr("gpus[1].link_lanes must be a whole number, not \"x8\""));
  EXPECT_THAT(message("{\"memory\": {\"speed\": 1}}"), HasSubstr("unknown key 'speed' in memory"));
  EXPECT_THAT(message("{\"memory\": {\"total_bytes\": -5}}"), HasSubstr("memory.total_bytes"));
  EXPECT_THAT(message("{\"dram_read\": 80}"), HasSubstr("dram_read must be a list"));
  EXPECT_THAT(message("[]"), HasSubstr("host facts must be an object"));
  EXPECT_THAT(message("{"), HasSubstr("host facts"));
}

TEST(HostFactsTest, DramReadIsTheBestRateUpToThatManyThreads) {
  HostFacts facts;
  EXPECT_EQ(facts.DramRead(0), 0);
  facts.dram_read = {{1, 20}, {8, 70}, {16, 60}};
  EXPECT_EQ(facts.DramRead(4), 20);
  EXPECT_EQ(facts.DramRead(8), 70);
  EXPECT_EQ(facts.DramRead(16), 70);
  EXPECT_EQ(facts.DramRead(0), 70);
}

TEST(HostFactsTest, AControlGroupNarrowsWhatIsUsable) {
  MemoryFacts memory;
  memory.available_bytes = 1000;
  EXPECT_EQ(memory.usable_bytes(), 1000u);
  memory.cgroup_bytes = 600;
  memory.cgroup_used_bytes = 100;
  EXPECT_EQ(memory.usable_bytes(), 500u);
  memory.cgroup_used_bytes = 700;
  EXPECT_EQ(memory.usable_bytes(), 0u);
}

}  // namespace
}  // namespace packtrain

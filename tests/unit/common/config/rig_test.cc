#include "common/config/rig.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace packtrain {
namespace {

using ::testing::HasSubstr;

constexpr char kHost[] = "name: r\nhosts:\n  - {name: a, cores: 8, memory_gib: 64, ";

std::string Fault(const std::string& text) {
  return std::string(ParseRig(text, "rig.yaml").status().message());
}

TEST(RigTest, AWholeRigIsRead) {
  const absl::StatusOr<Rig> rig = ParseRig(
      "name: two\n"
      "hosts:\n"
      "  - name: a\n"
      "    cores: 12\n"
      "    memory_gib: 186\n"
      "    dram_read_gbps: {12: 80, 1: 20.5}\n"
      "    experts_read_gbps: 46\n"
      "    gpus:\n"
      "      - {name: X, memory_gib: 24, read_gbps: 936, tflops: 71, link_gbps: 12.5}\n"
      "      - {name: Y, memory_gib: 32, read_gbps: 1792, tflops: 210, link_gbps: 0.8, "
      "link_lanes: 1}\n"
      "  - {name: b, cores: 4, memory_gib: 16, dram_read_gbps: 30}\n"
      "network:\n"
      "  - {between: [b, a], gbps: 1.1, round_trip_us: 60}\n",
      "rig.yaml");
  ASSERT_TRUE(rig.ok()) << rig.status();
  EXPECT_EQ(rig->name, "two");
  ASSERT_EQ(rig->hosts.size(), 2u);
  const HostFacts& a = rig->hosts[0];
  EXPECT_EQ(a.memory.usable_bytes(), uint64_t{186} << 30);
  EXPECT_EQ(a.DramRead(4), 20.5);
  EXPECT_EQ(a.DramRead(12), 80);
  EXPECT_EQ(a.experts_read_gb_per_s, 46);
  ASSERT_EQ(a.gpus.size(), 2u);
  EXPECT_EQ(a.gpus[1].index, 1);
  EXPECT_EQ(a.gpus[1].memory_bytes, uint64_t{32} << 30);
  EXPECT_EQ(a.gpus[1].link_lanes, 1);
  EXPECT_EQ(rig->hosts[1].DramRead(4), 30);
  EXPECT_EQ(rig->Network("a", "b").gb_per_s, 1.1);
  EXPECT_EQ(rig->Network("b", "a").round_trip_us, 60);
  EXPECT_EQ(rig->FindHost("c"), nullptr);
}

TEST(RigTest, HostsWithoutANetworkEntryAreOnGigabitEthernet) {
  EXPECT_NEAR(Rig().Network("a", "b").gb_per_s, 0.117, 1e-9);
}

TEST(RigTest, WrongRigsAreRefusedNamingLineKeyAndWhatIsAllowed) {
  const std::string host = kHost;
  EXPECT_THAT(Fault("name: r\n"), HasSubstr("hosts"));
  EXPECT_THAT(Fault("name: r\nhosts: []\n"), HasSubstr("hosts"));
  EXPECT_THAT(Fault(host + "ram: 3}\n"), HasSubstr("rig.yaml:3"));
  EXPECT_THAT(Fault(host + "dram_read_gbps: fast}\n"),
              testing::AllOf(HasSubstr("dram_read_gbps"), HasSubstr("\"fast\"")));
  EXPECT_THAT(Fault(host + "dram_read_gbps: nan}\n"), HasSubstr("dram_read_gbps"));
  EXPECT_THAT(Fault(host + "dram_read_gbps: -4}\n"), HasSubstr("allowed: a number from"));
  EXPECT_THAT(Fault(host + "dram_read_gbps: {0: 3}}\n"), HasSubstr("threads"));
  EXPECT_THAT(Fault(host + "dram_read_gbps: 60, gpus: [{name: X, memory_gib: 24}]}\n"),
              HasSubstr("read_gbps"));
  EXPECT_THAT(Fault(host + "dram_read_gbps: 60}\n  - {name: a, cores: 8, memory_gib: 64, "
                           "dram_read_gbps: 60}\n"),
              HasSubstr("name of its own"));
  EXPECT_THAT(Fault(host + "dram_read_gbps: 60}\nnetwork:\n  - {between: [a, z], gbps: 1, "
                           "round_trip_us: 9}\n"),
              HasSubstr("none of the hosts"));
  EXPECT_THAT(Fault(host + "dram_read_gbps: 60}\nnetwork:\n  - {between: [a, a], gbps: 1, "
                           "round_trip_us: 9}\n"),
              HasSubstr("two hosts"));
  EXPECT_EQ(LoadRig("/does/not/exist.yaml").status().code(), absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace packtrain

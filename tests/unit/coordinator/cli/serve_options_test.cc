// Flags of `packtrain serve` as a topology.

#include "coordinator/cli/serve_options.h"

#include <filesystem>
#include <fstream>

#include "gtest/gtest.h"

namespace packtrain {
namespace {

std::string MakeFile(const std::string& name) {
  const std::string path = (std::filesystem::path(testing::TempDir()) / name).string();
  std::ofstream(path) << "GGUF";
  return path;
}

TEST(ServeOptionsTest, FlagsBecomeCpuWorkers) {
  ServeOptions options;
  options.model_path = MakeFile("big-00001-of-00003.gguf");
  options.sidecar_path = MakeFile("small.gguf");
  options.stages = 3;
  options.experts_worker = true;
  options.kv_cache = "q8_0";
  options.thinking = "on";
  options.threads = 2;
  const absl::StatusOr<Topology> topology = MakeTopology(options);
  ASSERT_TRUE(topology.ok()) << topology.status();
  ASSERT_EQ(topology->models.size(), 2u);
  const ModelEntry& big = topology->models[0];
  EXPECT_EQ(big.name, "big");
  EXPECT_EQ(big.kv_cache, KvCacheType::kQ8_0);
  EXPECT_TRUE(big.thinking);
  ASSERT_EQ(big.workers.size(), 4u);
  EXPECT_EQ(big.workers[0].device_name(), "localhost/cpu");
  EXPECT_EQ(big.workers[0].threads, 2);
  EXPECT_EQ(big.workers[3].role, WorkerRole::kExperts);
  EXPECT_EQ(topology->models[1].name, "small");
  EXPECT_EQ(topology->models[1].role, "sidecar");
  EXPECT_TRUE(topology->models[1].workers.empty());
}

TEST(ServeOptionsTest, WithoutFlagsForWorkersAllIsPlanned) {
  ServeOptions options;
  options.model_path = MakeFile("one.gguf");
  const absl::StatusOr<Topology> planned = MakeTopology(options);
  ASSERT_TRUE(planned.ok()) << planned.status();
  EXPECT_TRUE(planned->models[0].workers.empty());
  options.experts_worker = true;
  const absl::StatusOr<Topology> experts = MakeTopology(options);
  ASSERT_TRUE(experts.ok()) << experts.status();
  EXPECT_EQ(experts->models[0].workers.size(), 2u);
}

TEST(ServeOptionsTest, TheSameFileTwiceGetsTwoNames) {
  ServeOptions options;
  options.model_path = options.sidecar_path = MakeFile("one.gguf");
  const absl::StatusOr<Topology> topology = MakeTopology(options);
  ASSERT_TRUE(topology.ok()) << topology.status();
  EXPECT_EQ(topology->models[1].name, "one-sidecar");
}

TEST(ServeOptionsTest, AMissingModelIsNamed) {
  ServeOptions options;
  options.model_path = "/nowhere/x.gguf";
  const absl::Status status = MakeTopology(options).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_NE(status.message().find("/nowhere/x.gguf"), absl::string_view::npos);
}

}  // namespace
}  // namespace packtrain

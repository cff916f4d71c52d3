// The topologies and rigs that people start from: each is read and planned, with headers of
// synthetic files of the real models' shapes.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "common/weights/gguf.h"
#include "coordinator/placement/planner.h"
#include "coordinator/placement/report.h"
#include "coordinator/placement/topology_request.h"
#include "tests/support/placement_checks.h"

namespace packtrain {
namespace {

namespace fs = std::filesystem;

const std::string kConfigs = PACKTRAIN_SOURCE_DIR "/configs/";

class ConfigsTest : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    folder_ =
        new std::string(testing::TempDir() + "packtrain_configs_test." + std::to_string(getpid()));
    fs::create_directories(*folder_);
    const std::string synth = "python3 " PACKTRAIN_SOURCE_DIR "/tests/support/synth_gguf.py ";
    ASSERT_EQ(std::system((synth + Glm() + " --layers 78 --mtp 1 --mix ud_iq2_m --sparse").c_str()),
              0);
    ASSERT_EQ(std::system(
                  (synth + Qwen() + " --arch qwen3.6-35b-a3b --layers 40 --mix ud_q4_k_xl --sparse")
                      .c_str()),
              0);
  }
  static void TearDownTestSuite() {
    fs::remove_all(*folder_);
    delete folder_;
  }
  static std::string Glm() { return *folder_ + "/glm.gguf"; }
  static std::string Qwen() { return *folder_ + "/qwen.gguf"; }

  static std::string Read(const std::string& path) {
    std::ifstream in(path, std::ios::binary);
    std::stringstream text;
    text << in.rdbuf();
    return text.str();
  }

  static absl::StatusOr<TopologyRequest> Request(const std::string& topology_name, const Rig& rig) {
    const std::string path = kConfigs + "topologies/" + topology_name + ".yaml";
    absl::StatusOr<Topology> topology = ParseTopology(Read(path), path);
    if (!topology.ok()) return topology.status();
    for (ModelEntry& model : topology->models) {
      model.path = model.name.substr(0, 3) == "glm" ? Glm() : Qwen();
    }
    return RequestFor(*topology, rig);
  }

  static Rig NamedRig(const std::string& name) {
    absl::StatusOr<Rig> rig = LoadRig(kConfigs + "rigs/" + name + ".yaml");
    EXPECT_TRUE(rig.ok()) << rig.status();
    return *std::move(rig);
  }

  static std::string* folder_;
};
std::string* ConfigsTest::folder_ = nullptr;

int ResidentMoeLayers(const DeploymentPlacement& placed) {
  int layers = 0;
  for (const StagePlacement& s : placed.stages) layers += std::max(s.resident_experts.size(), 0);
  return layers;
}

double LargestCard(const Placement& placement) {
  double gib = 0;
  for (const DeviceTotal& device : placement.devices) {
    if (!device.device.is_cpu()) {
      gib = std::max(gib, static_cast<double>(device.used()) / (1 << 30));
    }
  }
  return gib;
}

TEST_F(ConfigsTest, EveryTopologyPlansOnItsRig) {
  const std::pair<const char*, const char*> kPairs[] = {
      {"quad-3090", "quad-3090"}, {"quad-3090-sidecar", "quad-3090"},
      {"dual-3090", "dual-3090"}, {"single-4090", "single-4090"},
      {"5090-3090", "5090-3090"}, {"two-boxes", "two-boxes"},
      {"cpu-only", "cpu-only"},
  };
  for (const auto& [topology, rig] : kPairs) {
    SCOPED_TRACE(topology);
    const absl::StatusOr<TopologyRequest> request = Request(topology, NamedRig(rig));
    ASSERT_TRUE(request.ok()) << request.status();
    const absl::StatusOr<Placement> placement = PlanPlacement(request->request);
    ASSERT_TRUE(placement.ok()) << placement.status();
    EXPECT_EQ(PlanFault(request->request, *placement), "");
  }
}

TEST_F(ConfigsTest, EveryRigIsPlannedByATopology) {
  int rigs = 0;
  for (const auto& entry : fs::directory_iterator(kConfigs + "rigs")) {
    ++rigs;
    EXPECT_TRUE(LoadRig(entry.path().string()).ok()) << entry.path();
    EXPECT_TRUE(fs::exists(kConfigs + "topologies/" + entry.path().filename().string()))
        << entry.path();
  }
  EXPECT_GE(rigs, 6);
}

// The shapes' own parameter counts, as published: a check of reader and bill against arithmetic
// that knows neither.
TEST_F(ConfigsTest, TheModelsAreWeighedInFull) {
  const auto file = GgufFile::Open(Glm());
  ASSERT_TRUE(file.ok()) << file.status();
  const absl::StatusOr<ModelFacts> facts = ReadModelFacts(**file);
  ASSERT_TRUE(facts.ok()) << facts.status();
  uint64_t parameters = 2 * uint64_t{951'582'720}, tensors = 0;
  for (const LayerWeightBytes& l : facts->weights.layers) {
    parameters += l.parameters + l.expert_parameters;
  }
  EXPECT_NEAR(static_cast<double>(parameters), 753.33e9, 0.1e9);
  for (const GgufTensor& t : (*file)->tensors()) {
    // The MTP layer's attention is dense: its indexer is never loaded.
    if (t.name.rfind("blk.78.indexer.", 0) != 0) tensors += t.bytes;
  }
  EXPECT_EQ(facts->weights.total(), tensors);
}

TEST_F(ConfigsTest, GlmFitsTheReferenceRig) {
  const absl::StatusOr<TopologyRequest> request = Request("quad-3090", NamedRig("quad-3090"));
  ASSERT_TRUE(request.ok()) << request.status();
  const absl::StatusOr<Placement> placement = PlanPlacement(request->request);
  ASSERT_TRUE(placement.ok()) << placement.status();
  const DeploymentPlacement& glm = placement->deployments[0];
  EXPECT_EQ(glm.context, 131072);
  EXPECT_EQ(glm.shape.kv_cache, KvCacheType::kQ8_0);
  EXPECT_EQ(glm.stages.size(), 4u);
  EXPECT_GE(ResidentMoeLayers(glm), 22);
  EXPECT_LE(LargestCard(*placement), 22.8);
  // The card on the slow link waits for nobody's experts, and both choices are told.
  EXPECT_TRUE(glm.stages.back().remote_experts.empty());
  EXPECT_EQ(glm.alternatives.size(), 2u);
  EXPECT_THAT(PlacementTable(*placement), testing::HasSubstr("8 of 256 experts of"));
}

TEST_F(ConfigsTest, GlmFitsBesideASidecar) {
  const absl::StatusOr<TopologyRequest> request =
      Request("quad-3090-sidecar", NamedRig("quad-3090"));
  ASSERT_TRUE(request.ok()) << request.status();
  const absl::StatusOr<Placement> placement = PlanPlacement(request->request);
  ASSERT_TRUE(placement.ok()) << placement.status();
  EXPECT_GE(ResidentMoeLayers(placement->deployments[0]), 15);
  EXPECT_LE(LargestCard(*placement), 22.8);
  const DeploymentPlacement& sidecar = placement->deployments[1];
  ASSERT_EQ(sidecar.stages.size(), 1u);
  EXPECT_EQ(sidecar.stages[0].device.text(), "box1/cuda:3");
  EXPECT_TRUE(sidecar.stages[0].remote_experts.empty());
}

TEST_F(ConfigsTest, WorkersThatShareACardAreTold) {
  absl::StatusOr<TopologyRequest> request = Request("single-4090", NamedRig("single-4090"));
  ASSERT_TRUE(request.ok()) << request.status();
  DeploymentWish& wish = request->request.deployments[0];
  wish.workers[0].memory = uint64_t{11} << 30;
  wish.workers.insert(wish.workers.begin(), wish.workers[0]);
  const absl::StatusOr<Placement> placement = PlanPlacement(request->request);
  ASSERT_TRUE(placement.ok()) << placement.status();
  EXPECT_THAT(placement->deployments[0].notes,
              testing::Contains(testing::HasSubstr(wish.name + "/stage0 and " + wish.name +
                                                   "/stage1 take turns on box1/cuda:0")));
}

TEST_F(ConfigsTest, GpuMemoryThatIsLeftHoldsAFullContextOfEverySlot) {
  Rig rig = NamedRig("single-4090");
  rig.hosts[0].gpus[0].memory_bytes = rig.hosts[0].gpus[0].free_bytes = uint64_t{140} << 30;
  absl::StatusOr<TopologyRequest> request = Request("single-4090", rig);
  ASSERT_TRUE(request.ok()) << request.status();
  request->request.deployments[0].context = 32768;
  absl::StatusOr<Placement> placement = PlanPlacement(request->request);
  ASSERT_TRUE(placement.ok()) << placement.status();
  EXPECT_EQ(PlanFault(request->request, *placement), "");
  EXPECT_EQ(placement->deployments[0].shape.num_pages, 8 * 32768 / 64);
  // A host's memory has other uses.
  request = Request("cpu-only", NamedRig("cpu-only"));
  ASSERT_TRUE(request.ok()) << request.status();
  placement = PlanPlacement(request->request);
  ASSERT_TRUE(placement.ok()) << placement.status();
  EXPECT_EQ(placement->deployments[0].shape.num_pages, (32768 + 7 * 4096) / 64);
}

// The common engine's published 7.3 tokens/s there, at the bandwidth it reaches; and what memory
// would allow.
TEST_F(ConfigsTest, SpeedFollowsTheBandwidthOfTheExperts) {
  Rig rig = NamedRig("quad-3090");
  rig.hosts[0].experts_read_gb_per_s = 46;
  const absl::StatusOr<TopologyRequest> slow = Request("quad-3090", rig);
  ASSERT_TRUE(slow.ok()) << slow.status();
  const absl::StatusOr<Placement> common = PlanPlacement(slow->request);
  ASSERT_TRUE(common.ok());
  EXPECT_NEAR(common->deployments[0].speed.decode_tokens_per_s, 7.3, 0.73);
  rig.hosts[0].experts_read_gb_per_s = 80;
  const absl::StatusOr<TopologyRequest> fast = Request("quad-3090", rig);
  ASSERT_TRUE(fast.ok());
  const absl::StatusOr<Placement> ours = PlanPlacement(fast->request);
  ASSERT_TRUE(ours.ok());
  const SpeedPrediction& speed = ours->deployments[0].speed;
  EXPECT_GT(speed.decode_tokens_per_s, 10.5);
  EXPECT_LT(speed.decode_tokens_per_s, 13);
  double sum = 0;
  for (const SpeedTerm& term : speed.decode_terms) sum += term.ms;
  EXPECT_NEAR(sum, speed.decode_ms, 1e-9);
  EXPECT_EQ(speed.decode_bound, "box1/cpu DRAM");
  std::printf("at 46 GB/s %.2f tokens/s, at 80 GB/s %.2f\n",
              common->deployments[0].speed.decode_tokens_per_s, speed.decode_tokens_per_s);
}

}  // namespace
}  // namespace packtrain

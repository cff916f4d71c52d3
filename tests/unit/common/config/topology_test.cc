// Topologies: what a good one gives, and that each kind of mistake is refused with its place, its
// value and what is allowed.

#include "common/config/topology.h"

#include <filesystem>
#include <fstream>
#include <sstream>

#include "common/config/yaml_tree.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace packtrain {
namespace {

using testing::HasSubstr;

constexpr char kGood[] = R"(listen: "[::1]:9000"
hosts:
  - name: box1
  - {name: box2}
models:
  - name: big
    path: big.gguf
    context: 4096
    kv_cache: q8_0
    thinking: on
    slots: 4
    threads: 3
    workers:
      - {device: "box1/cuda:0", layers: 0-9, resident_experts: 2-4}
      - {device: box2/cpu, layers: 10-19, resident_experts: none, address: "10.0.0.2:7000", threads: 7}
      - {device: box1/cpu, role: experts}
  - name: small
    role: sidecar
    path: small.gguf
    workers: [{device: box1/cpu}]
links:
  - {between: ["box1/cuda:0", "*"], transport: grpc}
api_keys: [0123456789abcdef]
insecure: true
)";

std::string ErrorOf(const std::string& text) {
  const absl::StatusOr<Topology> topology = ParseTopology(text, "t.yaml");
  if (topology.ok()) return "accepted";
  EXPECT_EQ(topology.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(topology.status().message().find('\n'), absl::string_view::npos);
  return std::string(topology.status().message());
}

std::string Replace(std::string text, const std::string& from, const std::string& to) {
  const size_t at = text.find(from);
  EXPECT_NE(at, std::string::npos) << from;
  return text.replace(at, from.size(), to);
}

TEST(TopologyTest, EveryKeyIsRead) {
  const absl::StatusOr<Topology> topology = ParseTopology(kGood, "t.yaml");
  ASSERT_TRUE(topology.ok()) << topology.status();
  EXPECT_EQ(topology->listen_address, "::1");
  EXPECT_EQ(topology->listen_port, 9000);
  ASSERT_EQ(topology->models.size(), 2u);
  const ModelEntry& big = topology->models[0];
  EXPECT_EQ(big.role, "primary");
  EXPECT_EQ(big.context, 4096);
  EXPECT_EQ(big.kv_cache, KvCacheType::kQ8_0);
  EXPECT_TRUE(big.thinking);
  EXPECT_EQ(big.slots, 4);
  ASSERT_EQ(big.workers.size(), 3u);
  EXPECT_EQ(big.workers[0].device_name(), "box1/cuda:0");
  EXPECT_EQ(big.workers[0].layers->last, 10);
  EXPECT_EQ(big.workers[0].resident_experts->first, 2);
  EXPECT_EQ(big.workers[0].threads, 3);
  EXPECT_EQ(big.workers[1].threads, 7);
  ASSERT_TRUE(big.workers[1].resident_experts.has_value());
  EXPECT_TRUE(big.workers[1].resident_experts->empty());
  EXPECT_EQ(big.workers[1].address, "10.0.0.2:7000");
  EXPECT_EQ(big.workers[2].role, WorkerRole::kExperts);
  EXPECT_EQ(topology->models[1].slots, 0);
  EXPECT_EQ(topology->models[1].kv_cache, KvCacheType::kF16);
  EXPECT_EQ(topology->links[0].transport, "grpc");
  EXPECT_TRUE(topology->insecure);
}

struct Mistake {
  const char* what;
  const char* from;
  const char* to;
  const char* place;
  const char* message;
};

class TopologyMistakeTest : public testing::TestWithParam<Mistake> {};

TEST_P(TopologyMistakeTest, IsRefusedWithItsPlaceAndWhatIsAllowed) {
  const std::string error = ErrorOf(Replace(kGood, GetParam().from, GetParam().to));
  EXPECT_THAT(error, HasSubstr(GetParam().place));
  EXPECT_THAT(error, HasSubstr(GetParam().message));
}

INSTANTIATE_TEST_SUITE_P(
    All, TopologyMistakeTest,
    testing::Values(
        Mistake{"unknown key", "context: 4096", "contxt: 4096", "t.yaml:8: models[0]",
                "unknown key \"contxt\"; allowed: context, kv_cache, name"},
        Mistake{"wrong type", "context: 4096", "context: lots", "t.yaml:8: models[0].context",
                "is \"lots\"; allowed: a whole number from 64"},
        Mistake{"out of range", "slots: 4", "slots: 0", "t.yaml:11: models[0].slots",
                "\"0\"; allowed: a whole number from 1 to 256"},
        Mistake{"list for a value", "context: 4096", "context: [1]", "t.yaml:8:", "is a list"},
        Mistake{"value for a list", "[{device: box1/cpu}]", "none", "t.yaml:20: models[1].workers",
                "is a single value; allowed: a list"},
        Mistake{"unknown word", "kv_cache: q8_0", "kv_cache: q5",
                "t.yaml:9:", "is \"q5\"; allowed: f32, f16, q8_0, q4_1"},
        Mistake{"yes", "thinking: on", "thinking: yes", "t.yaml:10:", "allowed: off, on"},
        Mistake{"missing key", "path: big.gguf", "context: 64", "t.yaml:8:", "appears twice"},
        Mistake{"no device", "{device: box1/cpu, role: experts}", "{role: experts}",
                "t.yaml:16: models[0].workers[2]", "key \"device\" is missing"},
        Mistake{"unknown device", "box1/cuda:0\", layers", "box1/gpu0\", layers",
                "t.yaml:14:", "\"box1/gpu0\" is no device; allowed: HOST/cpu, HOST/cuda:N"},
        Mistake{"unknown host", "box1/cuda:0\", layers", "box3/cuda:0\", layers", "t.yaml:14:",
                "\"box3/cuda:0\" names no host of this topology; allowed: box1, box2"},
        Mistake{"overlap", "layers: 10-19", "layers: 8-19",
                "t.yaml:15:", "layers 8-9 belong to the worker on line 14 already (0-9)"},
        Mistake{"bad layers", "layers: 10-19", "layers: 19-10",
                "t.yaml:15:", "is \"19-10\"; allowed: FIRST-LAST"},
        Mistake{"resident elsewhere", "resident_experts: 2-4", "resident_experts: 2-12",
                "t.yaml:14:", "resident_experts 2-12 lie outside the worker's layers 0-9"},
        Mistake{"memory of a cpu", "[{device: box1/cpu}]", "[{device: box1/cpu, memory_gib: 2}]",
                "t.yaml:20:", "memory_gib is for workers on a GPU"},
        Mistake{"two owners", "workers: [{device: box1/cpu}]",
                "workers: [{device: \"box1/cuda:0\"}]",
                "t.yaml:20:", "device box1/cuda:0 belongs to the worker on line 14 already"},
        Mistake{"double model", "name: small", "name: big",
                "t.yaml:17:", "model \"big\" is named on line 6 already"},
        Mistake{"double host", "name: box2", "name: box1",
                "t.yaml:4:", "host \"box1\" is named on line 3 already"},
        Mistake{"two primaries", "role: sidecar", "role: primary",
                "t.yaml:17:", "\"small\" and \"big\" (line 6) are both primary"},
        Mistake{"elsewhere without address", ", address: \"10.0.0.2:7000\"", "",
                "t.yaml:15:", "host \"box2\" is another machine"},
        Mistake{"bad address", "10.0.0.2:7000", "10.0.0.2", "t.yaml:15:", "allowed: HOST:PORT"},
        Mistake{"bad port", "[::1]:9000", "[::1]:90000", "t.yaml:1: listen:", "0 to 65535"},
        Mistake{"unknown link end", "[\"box1/cuda:0\", \"*\"]", "[\"box1/cuda:7\", \"*\"]",
                "t.yaml:22:", "no worker has device \"box1/cuda:7\""},
        Mistake{"short key", "0123456789abcdef", "secret", "t.yaml:23:", "has 6 characters"},
        Mistake{"experts on a GPU", "{device: box1/cpu, role: experts}",
                "{device: \"box1/cuda:1\", role: experts}", "t.yaml:16:", "runs on a cpu"}),
    [](const auto& param_info) {
      std::string name = param_info.param.what;
      std::replace(name.begin(), name.end(), ' ', '_');
      return name;
    });

TEST(TopologyTest, AModelNeedsAStage) {
  EXPECT_THAT(ErrorOf("models: [{name: a, path: b, workers: [{device: cpu, role: experts}]}]"),
              HasSubstr("t.yaml:1: model \"a\" has no worker with role stage"));
  EXPECT_THAT(ErrorOf("models: []"), HasSubstr("allowed: at least one model"));
  EXPECT_THAT(ErrorOf(""), HasSubstr("is nothing; allowed: a map of"));
}

TEST(TopologyTest, AnchorsAliasesTagsAndBombsAreRefused) {
  EXPECT_THAT(ErrorOf("a: &x [1]\nb: *x\n"), HasSubstr("t.yaml:1: anchors and aliases"));
  EXPECT_THAT(ErrorOf("a: !!python/object x\n"), HasSubstr("tags are not allowed"));
  EXPECT_THAT(ErrorOf(std::string(40, '[') + std::string(40, ']')),
              HasSubstr("nested deeper than 16"));
  EXPECT_THAT(ErrorOf("models: []\n---\nmodels: []\n"), HasSubstr("only one document"));
  EXPECT_THAT(ErrorOf("a: [" + std::string(100000, ',') + "]"), HasSubstr("t.yaml:1:"));
  std::string many = "a: [";
  for (int i = 0; i < 30000; ++i) many += "1,";
  EXPECT_THAT(ErrorOf(many + "1]"), HasSubstr("more than 20000 values"));
  EXPECT_THAT(ErrorOf(std::string((1 << 20) + 1, ' ')), HasSubstr("at most 1048576 are read"));
  EXPECT_THAT(ErrorOf("models: [}\n"), HasSubstr("t.yaml:1:"));
  EXPECT_THAT(ErrorOf("? [a]\n: b\n"), HasSubstr("a key must be plain text"));
}

TEST(TopologyTest, AMissingFileIsNamed) {
  const absl::StatusOr<Topology> none = LoadTopology("/nowhere/t.yaml");
  EXPECT_EQ(none.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(none.status().message()), HasSubstr("/nowhere/t.yaml"));

  const std::filesystem::path file = std::filesystem::path(testing::TempDir()) / "missing.yaml";
  std::ofstream(file) << "models:\n  - {name: a, path: absent.gguf, workers: [{device: cpu}]}\n";
  const absl::StatusOr<Topology> absent = LoadTopology(file.string());
  EXPECT_EQ(absent.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(absent.status().message()),
              testing::AllOf(HasSubstr("missing.yaml:2: model \"a\""), HasSubstr("absent.gguf")));
}

TEST(TopologyTest, PinnedLayersMustCoverTheModelOnce) {
  const absl::StatusOr<Topology> topology = ParseTopology(kGood, "t.yaml");
  ASSERT_TRUE(topology.ok());
  const ModelEntry& big = topology->models[0];
  EXPECT_TRUE(CheckLayers(*topology, big, 20).ok());
  EXPECT_THAT(std::string(CheckLayers(*topology, big, 25).message()),
              HasSubstr("layers 20-24 belong to no stage; this model has 0-24"));
  EXPECT_THAT(std::string(CheckLayers(*topology, big, 15).message()),
              HasSubstr("t.yaml:15: model \"big\": layers 10-19; this model has 0-14"));
  const absl::StatusOr<Topology> gap =
      ParseTopology(Replace(kGood, "layers: 10-19", "layers: 12-19"), "t.yaml");
  ASSERT_TRUE(gap.ok());
  EXPECT_THAT(std::string(CheckLayers(*gap, gap->models[0], 20).message()),
              HasSubstr("layers 10-11 belong to no stage"));
}

TEST(TopologyTest, TheExamplesLoad) {
  int count = 0;
  const std::filesystem::path folder =
      std::filesystem::path(PACKTRAIN_SOURCE_DIR) / "configs" / "topologies";
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    std::ifstream file(entry.path());
    std::ostringstream text;
    text << file.rdbuf();
    const absl::StatusOr<Topology> topology = ParseTopology(text.str(), entry.path().string());
    EXPECT_TRUE(topology.ok()) << topology.status();
    ++count;
  }
  EXPECT_GE(count, 4);
  const absl::StatusOr<Topology> demo = LoadTopology((folder / "cpu-demo.yaml").string());
  EXPECT_TRUE(demo.ok()) << demo.status();
}

}  // namespace
}  // namespace packtrain

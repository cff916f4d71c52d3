// Mutations of the example rigs and of a host's facts.

#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>

#include "common/config/rig.h"
#include "tests/fuzz/fuzz_targets.h"
#include "tests/fuzz/smoke.h"
#include "tests/support/test_files.h"

namespace packtrain {
namespace {

constexpr SmokeOptions kSmoke = {.seed = 20261124, .rounds = 3000};

std::vector<std::string> Rigs() {
  std::vector<std::filesystem::path> paths;
  for (const auto& entry :
       std::filesystem::directory_iterator(PACKTRAIN_SOURCE_DIR "/configs/rigs")) {
    paths.push_back(entry.path());
  }
  std::sort(paths.begin(), paths.end());
  std::vector<std::string> corpus;
  for (const auto& path : paths) corpus.push_back(ReadFileOrDie(path.string()));
  return corpus;
}

// The hosts of the rigs, with what only a measurement knows.
std::vector<std::string> Facts() {
  std::vector<std::string> corpus;
  for (const std::string& text : Rigs()) {
    HostFacts host = ParseRig(text, "rig")->hosts[0];
    host.weight_rates = {{"Q4_K", 90, 120, 2, 80, 300, 100}, {"IQ2_XS", 58, 49, 2.3, 55}};
    host.storage.resize(1);
    host.storage[0].path = "/models";
    for (GpuFacts& gpu : host.gpus) {
      gpu.weight_rates = host.weight_rates;
      gpu.peers = {0, 1};
    }
    corpus.push_back(HostFactsToJson(host));
  }
  return corpus;
}

// Takes a rate for an index of an array.
std::string ReaderWithAFault(std::span<const std::byte> bytes) {
  const std::string text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  const size_t cores = text.find("cores: ");
  if (cores == std::string::npos) return "";
  return text.substr(cores + 7, 1) == "-" ? "would read in front of the array" : "";
}

TEST(RigSmokeTest, NoMutationOfTheExamplesBreaksTheReader) {
  ASSERT_GE(Rigs().size(), 6u);
  EXPECT_EQ(RunSmoke(Rigs(), kSmoke, FuzzRig), "");
}

TEST(RigSmokeTest, NoMutationOfAHostsFactsBreaksTheReader) {
  for (const std::string& text : Facts()) ASSERT_TRUE(HostFactsFromJson(text).ok());
  EXPECT_EQ(RunSmoke(Facts(), kSmoke, FuzzHostFacts), "");
}

TEST(RigSmokeTest, TheCanaryIsFoundByMutation) {
  EXPECT_NE(RunSmoke(Rigs(), kSmoke, ReaderWithAFault), "");
}

}  // namespace
}  // namespace packtrain

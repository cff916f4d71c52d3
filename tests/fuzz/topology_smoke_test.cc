// Mutations of the example topologies, and a canary: a reader with one planted fault, which the
// same run must find.

#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>

#include "tests/fuzz/fuzz_targets.h"
#include "tests/fuzz/smoke.h"
#include "tests/support/test_files.h"

namespace packtrain {
namespace {

constexpr SmokeOptions kSmoke = {.seed = 20260102, .rounds = 3000};

std::vector<std::string> Corpus() {
  std::vector<std::filesystem::path> paths;
  for (const auto& entry :
       std::filesystem::directory_iterator(PACKTRAIN_SOURCE_DIR "/configs/topologies")) {
    paths.push_back(entry.path());
  }
  std::sort(paths.begin(), paths.end());
  std::vector<std::string> corpus;
  for (const auto& path : paths) corpus.push_back(ReadFileOrDie(path.string()));
  return corpus;
}

// Takes every line with a dash in it for one with a colon as well.
std::string ReaderWithAFault(std::span<const std::byte> bytes) {
  const std::string text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  const size_t item = text.find("\n  - name");
  if (item == std::string::npos) return "";
  return text.substr(item + 9, 1) == ":" ? "" : "would read beyond the line";
}

TEST(TopologySmokeTest, NoMutationOfTheExamplesBreaksTheReader) {
  const std::vector<std::string> corpus = Corpus();
  ASSERT_GE(corpus.size(), 4u);
  EXPECT_EQ(RunSmoke(corpus, kSmoke, FuzzTopology), "");
}

TEST(TopologySmokeTest, TheCanaryIsFoundByMutation) {
  EXPECT_NE(RunSmoke(Corpus(), kSmoke, ReaderWithAFault), "");
}

}  // namespace
}  // namespace packtrain

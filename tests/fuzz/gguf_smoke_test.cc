// Mutations of the golden GGUF files, and a canary: a reader with one planted fault, which the same
// run must find.

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <filesystem>

#include "tests/fuzz/fuzz_targets.h"
#include "tests/fuzz/smoke.h"
#include "tests/support/test_files.h"

namespace packtrain {
namespace {

constexpr SmokeOptions kSmoke = {.seed = 20260101, .rounds = 1000};

std::vector<std::string> Corpus() {
  std::vector<std::filesystem::path> paths;
  for (const auto& entry :
       std::filesystem::directory_iterator(PACKTRAIN_BINARY_DIR "/tests/golden/gguf")) {
    if (entry.path().extension() == ".gguf" && entry.file_size() < 20000) {
      paths.push_back(entry.path());
    }
  }
  std::sort(paths.begin(), paths.end());
  std::vector<std::string> corpus;
  for (const auto& path : paths) corpus.push_back(ReadFileOrDie(path.string()));
  return corpus;
}

// Checks the first key's length as `8 + length <= remaining`, which wraps for lengths near 2^64.
std::string ReaderWithAFault(std::span<const std::byte> bytes) {
  if (bytes.size() < 32 || std::memcmp(bytes.data(), "GGUF", 4) != 0) return "";
  uint64_t length;
  std::memcpy(&length, bytes.data() + 24, 8);
  if (8 + length > bytes.size() - 24) return "";
  return length > bytes.size() ? "would read outside the file" : "";
}

TEST(GgufSmokeTest, NoMutationOfTheGoldenFilesBreaksTheReader) {
  const std::vector<std::string> corpus = Corpus();
  ASSERT_GT(corpus.size(), 150u);
  EXPECT_EQ(RunSmoke(corpus, kSmoke, FuzzGguf), "");
}

TEST(GgufSmokeTest, TheCanaryIsFoundByMutation) {
  // Without the files that carry this very defect.
  std::vector<std::string> corpus = Corpus();
  std::erase_if(corpus,
                [](const std::string& file) { return !ReaderWithAFault(AsBytes(file)).empty(); });
  EXPECT_NE(RunSmoke(corpus, kSmoke, ReaderWithAFault), "");
}

}  // namespace
}  // namespace packtrain

// Mutations of texts and of tokenizer files, and a canary: a stream that forgets to hold back
// unfinished characters, which the same run must find.

#include <gtest/gtest.h>

#include "coordinator/tokenizer/utf8.h"
#include "tests/fuzz/fuzz_targets.h"
#include "tests/fuzz/smoke.h"
#include "tests/support/test_files.h"
#include "tests/support/tokenizer_files.h"

namespace packtrain {
namespace {

const std::vector<std::string>& Texts() {
  static const auto& texts = *new std::vector<std::string>{
      "aabcabc abc\tabcc  \n\n abc\r\n", "it's 12345 o'clock, don't 1,000.50 <u><v><u> <|x|>",
      "Gr\xC3\xBC\xC3\x9F \xE4\xBD\xA0\xE5\xA5\xBD \xF0\x9F\x98\x80\xF0\x9F\x91\x8D "
      "\xC2\xA0\xE3\x80\x80z",
      "def f(x):\n    return x**2  # {'a': [1, 2]}\n", std::string("\0\x01\x7F\xFF\xC0\x80", 6)};
  return texts;
}

// Shows every character as soon as its first byte is there.
std::string StreamWithAFault(std::span<const std::byte> bytes) {
  for (const std::byte byte : bytes) {
    const std::string chunk(1, static_cast<char>(byte));
    if (ValidUtf8Prefix(chunk) != chunk.size()) return "a chunk that is no UTF-8";
  }
  return "";
}

TEST(TokenizerSmokeTest, NoMutatedTextBreaksATokenizer) {
  EXPECT_EQ(RunSmoke(Texts(), {.seed = 20260102, .rounds = 2000}, FuzzTokenizerText), "");
}

TEST(TokenizerSmokeTest, NoMutatedFileBreaksATokenizer) {
  const std::vector<std::string> files = {
      BpeFile({.merges = {{"a", "b"}, {"ab", "c"}}, .specials = {{"<|user|>", 3}, {"<u>", 4}}}),
      BpeFile({.pre = "llama-bpe", .merges = {{"r", "\xC3\xBC"}}, .specials = {{"</s>", 1}}}),
      SpmFile({{"\xE2\x96\x81", 0}, {"ich", -1}, {"ch", -2}, {"12", -3}}),
  };
  EXPECT_EQ(RunSmoke(files, {.seed = 20260103, .rounds = 2000}, FuzzTokenizerFile), "");
}

TEST(TokenizerSmokeTest, TheCanaryIsFoundByMutation) {
  const std::vector<std::string> ascii = {Texts()[0], Texts()[1]};
  EXPECT_NE(RunSmoke(ascii, {.seed = 20260102, .rounds = 2000}, StreamWithAFault), "");
}

}  // namespace
}  // namespace packtrain

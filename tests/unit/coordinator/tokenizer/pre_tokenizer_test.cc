// What the golden strings do not reach: very long runs, where the regex engine could hit a limit,
// and bytes that are no UTF-8.

#include "coordinator/tokenizer/pre_tokenizer.h"

#include <gtest/gtest.h>

namespace packtrain {
namespace {

using Pieces = std::vector<std::string_view>;

constexpr size_t kLong = size_t{1} << 20;
const char* const kNames[] = {"glm4",  "chatglm-bpe", "llama-bpe",   "llama3", "llama-v3",
                              "qwen2", "qwen35",      "deepseek-v3", "gpt-2"};

TEST(PreTokenizerTest, EveryKnownNameIsListed) {
  for (const char* name : kNames) {
    EXPECT_NE(PreTokenizer::Create(name), nullptr) << name;
    EXPECT_NE(PreTokenizer::KnownNames().find(name), std::string::npos) << name;
  }
  EXPECT_EQ(PreTokenizer::Create("glm5"), nullptr);
}

// A limit would leave the rest uncut, so each text has its border at the far end.
TEST(PreTokenizerTest, LongRunsAreCutAtTheirFarEnd) {
  for (const char* name : kNames) {
    const auto pre_tokenizer = PreTokenizer::Create(name);
    const std::string letters(kLong, 'a');
    EXPECT_EQ(pre_tokenizer->Split(letters + " b"), (Pieces{letters, " b"})) << name;
    const std::string spaces(kLong, ' ');
    EXPECT_EQ(pre_tokenizer->Split(spaces + " b"), (Pieces{spaces, " b"})) << name;
    const std::string marks(kLong, '!');
    EXPECT_EQ(pre_tokenizer->Split(marks + " b"), (Pieces{marks, " b"})) << name;
    std::string accents;
    for (size_t i = 0; i < kLong; ++i) accents += "\xC3\xA9";
    EXPECT_EQ(pre_tokenizer->Split(accents + " b"), (Pieces{accents, " b"})) << name;
  }
}

TEST(PreTokenizerTest, DigitsAreCutAsTheFamilyCutsThem) {
  const std::string digits = "1234567";
  EXPECT_EQ(PreTokenizer::Create("glm4")->Split(digits), (Pieces{"123", "456", "7"}));
  EXPECT_EQ(PreTokenizer::Create("deepseek-v3")->Split(digits), (Pieces{"123", "456", "7"}));
  EXPECT_EQ(PreTokenizer::Create("qwen2")->Split("12"), (Pieces{"1", "2"}));
  EXPECT_EQ(PreTokenizer::Create("gpt-2")->Split(digits), (Pieces{digits}));
}

TEST(PreTokenizerTest, MongolianVowelSeparatorIsNoWhiteSpace) {
  EXPECT_EQ(PreTokenizer::Create("glm4")->Split("  \xE1\xA0\x8E"
                                                "a"),
            (Pieces{" ", " \xE1\xA0\x8E", "a"}));
}

TEST(PreTokenizerTest, InvalidBytesAreTheirOwnPieces) {
  EXPECT_EQ(PreTokenizer::Create("glm4")->Split("ab\xFF"
                                                "cd\xE4\xBD"),
            (Pieces{"ab", "\xFF", "cd", "\xE4\xBD"}));
}

}  // namespace
}  // namespace packtrain

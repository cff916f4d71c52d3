// Streams of byte tokens, cut in the middle of characters.

#include <gtest/gtest.h>

#include "coordinator/tokenizer/tokenizer.h"
#include "tests/support/test_files.h"
#include "tests/support/tokenizer_files.h"

namespace packtrain {
namespace {

class DetokenizerTest : public testing::Test {
 protected:
  DetokenizerTest() {
    const std::string bytes = BpeFile({.specials = {{"<end>", 3}}});
    const auto file = GgufFile::Parse(AsBytes(bytes), "bpe.gguf");
    EXPECT_TRUE(file.ok()) << file.status();
    tokenizer_ = Tokenizer::Create(**file).value();
  }

  // The chunk that each byte completes, then what Finish gives.
  std::vector<std::string> Chunks(const std::string& bytes) const {
    Detokenizer detokenizer(tokenizer_.get());
    std::vector<std::string> chunks;
    for (const char byte : bytes) chunks.push_back(detokenizer.Add(static_cast<uint8_t>(byte)));
    chunks.push_back(detokenizer.Finish());
    return chunks;
  }

  std::unique_ptr<Tokenizer> tokenizer_;
};

using Strings = std::vector<std::string>;

TEST_F(DetokenizerTest, ACharacterAppearsWithItsLastByte) {
  EXPECT_EQ(Chunks("a\xF0\x9F\x98\x80"), (Strings{"a", "", "", "", "\xF0\x9F\x98\x80", ""}));
}

TEST_F(DetokenizerTest, AnUnfinishedCharacterIsReplacedAtTheEnd) {
  EXPECT_EQ(Chunks("\xF0\x9F"), (Strings{"", "", "\xEF\xBF\xBD"}));
}

TEST_F(DetokenizerTest, InvalidBytesAreReplacedAsSoonAsTheyAreKnownToBe) {
  EXPECT_EQ(Chunks("\xFF"
                   "a"),
            (Strings{"\xEF\xBF\xBD", "a", ""}));
  // A character broken off by another.
  EXPECT_EQ(Chunks("\xE4\xBD"
                   "a"),
            (Strings{"", "",
                     "\xEF\xBF\xBD"
                     "a",
                     ""}));
  // A surrogate: its second byte is not allowed after ED, and then stands alone.
  EXPECT_EQ(Chunks("\xED\xA0"), (Strings{"", "\xEF\xBF\xBD\xEF\xBF\xBD", ""}));
}

TEST_F(DetokenizerTest, ControlTokensAreSilentUnlessAskedFor) {
  const TokenId end = tokenizer_->vocab_size() - 1;
  EXPECT_EQ(Detokenizer(tokenizer_.get()).Add(end), "");
  EXPECT_EQ(Detokenizer(tokenizer_.get(), /*show_special=*/true).Add(end), "<end>");
}

}  // namespace
}  // namespace packtrain

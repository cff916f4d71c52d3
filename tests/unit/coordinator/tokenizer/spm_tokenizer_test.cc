// SentencePiece against a brute force of its definition, on small random vocabularies with ties.

#include <gtest/gtest.h>

#include <random>

#include "coordinator/tokenizer/tokenizer.h"
#include "tests/support/test_files.h"
#include "tests/support/tokenizer_files.h"

namespace packtrain {
namespace {

constexpr TokenId kFirstByte = 3;
constexpr TokenId kFirstToken = 259;
const char kSpace[] = "\xE2\x96\x81";

std::unique_ptr<Tokenizer> Make(const std::vector<SpmToken>& tokens) {
  const std::string bytes = SpmFile(tokens);
  const auto file = GgufFile::Parse(AsBytes(bytes), "spm.gguf");
  EXPECT_TRUE(file.ok()) << file.status();
  auto tokenizer = Tokenizer::Create(**file);
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
  return *std::move(tokenizer);
}

int Find(const std::vector<SpmToken>& tokens, const std::string& text) {
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (tokens[i].text == text) return static_cast<int>(i);
  }
  return -1;
}

// `text` holds a, b, spaces and U+00E9.
std::vector<TokenId> BruteForce(const std::string& text, const std::vector<SpmToken>& tokens) {
  std::vector<std::string> parts = {kSpace};
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == ' ') {
      parts.emplace_back(kSpace);
    } else if (text[i] == '\xC3') {
      parts.push_back(text.substr(i++, 2));
    } else {
      parts.emplace_back(1, text[i]);
    }
  }
  while (true) {
    int best_token = -1;
    size_t best = 0;
    for (size_t i = 0; i + 1 < parts.size(); ++i) {
      const int token = Find(tokens, parts[i] + parts[i + 1]);
      if (token < 0) continue;
      if (best_token < 0 || tokens[static_cast<size_t>(token)].score >
                                tokens[static_cast<size_t>(best_token)].score) {
        best_token = token;
        best = i;
      }
    }
    if (best_token < 0) break;
    parts[best] += parts[best + 1];
    parts.erase(parts.begin() + static_cast<ptrdiff_t>(best) + 1);
  }
  std::vector<TokenId> ids;
  for (const std::string& part : parts) {
    const int token = Find(tokens, part);
    if (token >= 0) {
      ids.push_back(kFirstToken + token);
    } else {
      for (const char byte : part) ids.push_back(kFirstByte + static_cast<uint8_t>(byte));
    }
  }
  return ids;
}

TEST(SpmTokenizerTest, RandomVocabulariesAndTextsAgreeWithBruteForce) {
  std::mt19937 random(3);
  const std::string units[] = {"a", "b", kSpace, "\xC3\xA9"};
  const std::string text_units[] = {"a", "b", " ", "\xC3\xA9"};
  for (int round = 0; round < 300; ++round) {
    std::vector<SpmToken> tokens = {{kSpace, -9}};  // as every real vocabulary has
    for (int i = 0; i < 14; ++i) {
      std::string text;
      for (size_t n = 0, size = 1 + random() % 4; n < size; ++n) text += units[random() % 4];
      // Few different scores, so that ties are common.
      if (Find(tokens, text) < 0) tokens.push_back({text, -float(random() % 4)});
    }
    const auto tokenizer = Make(tokens);
    std::string text;
    for (size_t n = 0, size = 1 + random() % 30; n < size; ++n) text += text_units[random() % 4];
    const std::vector<TokenId> ids = tokenizer->Encode(text, {});
    EXPECT_EQ(ids, BruteForce(text, tokens)) << text;
    EXPECT_EQ(tokenizer->Decode(ids, false), text);
  }
}

TEST(SpmTokenizerTest, BosComesFirstAndTheSpacePrefixReturnsAfterASpecialToken) {
  const auto tokenizer = Make({{std::string(kSpace) + "a", 0}, {"a", 0}});
  EXPECT_EQ(tokenizer->Encode("a</s>a", {.add_special = true, .parse_special = true}),
            (std::vector<TokenId>{1, kFirstToken, 2, kFirstToken}));
  EXPECT_EQ(tokenizer->Encode("", {.add_special = true}), (std::vector<TokenId>{1}));
  EXPECT_TRUE(tokenizer->IsEndOfGeneration(2));
}

TEST(SpmTokenizerTest, AnyBytesComeBackUnchanged) {
  const auto tokenizer = Make({{kSpace, 0}, {"ab", 0}});
  std::string text;
  for (int byte = 0; byte < 256; ++byte) text += static_cast<char>(byte);
  EXPECT_EQ(tokenizer->Decode(tokenizer->Encode(text, {}), false), text);
}

TEST(SpmTokenizerTest, AMegabyteOfOneCharacterIsEncoded) {
  const auto tokenizer = Make({{kSpace, 0}, {"aa", -1}, {"aaaa", -2}});
  const std::vector<TokenId> ids = tokenizer->Encode(std::string(size_t{1} << 20, 'a'), {});
  EXPECT_EQ(ids.size(), 1 + (size_t{1} << 18));
}

TEST(SpmTokenizerTest, TextThatLooksLikeAByteTokenIsText) {
  const auto tokenizer = Make({{kSpace, 0}});
  EXPECT_EQ(tokenizer->Encode("<0x41>", {}).size(), 1 + 6u);
}

}  // namespace
}  // namespace packtrain

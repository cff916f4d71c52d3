// Byte-level BPE against a brute force that knows nothing of heaps and ids, and on texts that a
// quadratic implementation would not finish within the test's time limit.

#include <gtest/gtest.h>

#include <random>

#include "coordinator/tokenizer/tokenizer.h"
#include "tests/support/test_files.h"
#include "tests/support/tokenizer_files.h"

namespace packtrain {
namespace {

std::unique_ptr<Tokenizer> Make(const BpeFileOptions& options) {
  const std::string bytes = BpeFile(options);
  const auto file = GgufFile::Parse(AsBytes(bytes), "bpe.gguf");
  EXPECT_TRUE(file.ok()) << file.status();
  auto tokenizer = Tokenizer::Create(**file);
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
  return *std::move(tokenizer);
}

std::vector<std::string> Pieces(const Tokenizer& tokenizer, const std::vector<TokenId>& ids) {
  std::vector<std::string> pieces;
  for (const TokenId id : ids) pieces.emplace_back(tokenizer.Piece(id, true));
  return pieces;
}

// The definition: merge the leftmost pair of lowest rank until no pair is listed.
std::vector<std::string> BruteForce(const std::string& text, const BpeFileOptions& options) {
  std::vector<std::string> parts;
  for (const char c : text) parts.emplace_back(1, c);
  while (true) {
    size_t best_rank = options.merges.size();
    size_t best = 0;
    for (size_t i = 0; i + 1 < parts.size(); ++i) {
      for (size_t rank = 0; rank < best_rank; ++rank) {
        if (options.merges[rank] == std::pair(parts[i], parts[i + 1])) {
          best_rank = rank;
          best = i;
        }
      }
    }
    if (best_rank == options.merges.size()) return parts;
    parts[best] += parts[best + 1];
    parts.erase(parts.begin() + static_cast<ptrdiff_t>(best) + 1);
  }
}

TEST(BpeTokenizerTest, RandomMergesAndWordsAgreeWithBruteForce) {
  std::mt19937 random(7);
  for (int round = 0; round < 200; ++round) {
    std::vector<std::string> texts = {"a", "b", "c"};
    BpeFileOptions options;
    for (int i = 0; i < 12; ++i) {
      const auto& left = texts[random() % texts.size()];
      const auto& right = texts[random() % texts.size()];
      options.merges.emplace_back(left, right);
      texts.push_back(left + right);
    }
    const auto tokenizer = Make(options);
    std::string word;
    for (size_t i = 0, size = 1 + random() % 40; i < size; ++i) {
      word += static_cast<char>('a' + random() % 3);
    }
    EXPECT_EQ(Pieces(*tokenizer, tokenizer->Encode(word, {})), BruteForce(word, options)) << word;
  }
}

TEST(BpeTokenizerTest, AnyBytesComeBackUnchanged) {
  std::mt19937 random(11);
  for (const char* pre : {"glm4", "llama-bpe", "qwen2", "qwen35", "deepseek-v3", "gpt-2"}) {
    const auto tokenizer = Make({.pre = pre, .merges = {{"a", "b"}}});
    for (int round = 0; round < 200; ++round) {
      std::string text;
      for (size_t i = 0, size = random() % 60; i < size; ++i) {
        // Half of them bytes from which UTF-8 and its errors are made.
        const size_t byte = random() % 2 == 0 ? random() % 256 : 0xC0 + random() % 64;
        text += static_cast<char>(random() % 3 == 0 ? 0x80 + byte % 64 : byte);
      }
      EXPECT_EQ(tokenizer->Decode(tokenizer->Encode(text, {}), false), text) << pre;
    }
  }
}

TEST(BpeTokenizerTest, AMegabyteOfOneCharacterIsEncoded) {
  const auto tokenizer = Make({.merges = {{"a", "a"}, {"aa", "aa"}, {"aaaa", "aaaa"}}});
  constexpr size_t kSize = size_t{1} << 20;
  const std::vector<TokenId> ids = tokenizer->Encode(std::string(kSize, 'a'), {});
  EXPECT_EQ(ids, std::vector<TokenId>(kSize / 8, 258));
  for (const char* unit : {" ", "\n", "1", "!", "'", "\xC3\xA9", "\xFF", " a", "<"}) {
    std::string text;
    while (text.size() < kSize) text += unit;
    EXPECT_EQ(tokenizer->Decode(tokenizer->Encode(text, {}), false), text);
  }
}

TEST(BpeTokenizerTest, AWholeTokenGoesBeforeItsMergesWhereTheFamilySaysSo) {
  // Merging makes "ab" first, so "abc" = "a" + "bc" is reached only as a whole.
  const std::vector<std::pair<std::string, std::string>> merges = {
      {"a", "b"}, {"b", "c"}, {"a", "bc"}};
  const auto glm = Make({.pre = "glm4", .merges = merges});
  EXPECT_EQ(Pieces(*glm, glm->Encode("abc", {})), (std::vector<std::string>{"ab", "c"}));
  const auto llama = Make({.pre = "llama-bpe", .merges = merges});
  EXPECT_EQ(Pieces(*llama, llama->Encode("abc", {})), (std::vector<std::string>{"abc"}));
}

TEST(BpeTokenizerTest, TextNeverAssemblesAControlToken) {
  // The merge's result is a token of the table, but a control token.
  const auto tokenizer = Make({.merges = {{"x", "y"}}, .specials = {{"<x>", 3}}});
  for (const TokenId id : tokenizer->Encode("<x> <xy>", {})) {
    EXPECT_NE(tokenizer->kind(id), TokenKind::kControl);
  }
  EXPECT_EQ(tokenizer->Encode("<x>", {.parse_special = true}).size(), 1u);
}

}  // namespace
}  // namespace packtrain

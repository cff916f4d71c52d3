// Every string, prompt and token table that the reference has left for real tokenizers.

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "absl/strings/escaping.h"
#include "coordinator/tokenizer/tokenizer.h"
#include "tests/support/test_files.h"

namespace packtrain {
namespace {

using Json = nlohmann::json;

class TokenizerGoldenTest : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    const std::string stem =
        std::string(PACKTRAIN_BINARY_DIR "/tests/golden/tokenizers/") + GetParam();
    golden_ = Json::parse(ReadFileOrDie(stem + ".json"));
    const auto file = GgufFile::Open(stem + ".gguf");
    ASSERT_TRUE(file.ok()) << file.status();
    auto tokenizer = Tokenizer::Create(**file);
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
    tokenizer_ = *std::move(tokenizer);
  }

  // Streams `ids` token by token.
  std::string Stream(const std::vector<TokenId>& ids, bool show_special) const {
    Detokenizer detokenizer(tokenizer_.get(), show_special);
    std::string text;
    for (const TokenId id : ids) text += detokenizer.Add(id);
    return text + detokenizer.Finish();
  }

  Json golden_;
  std::unique_ptr<Tokenizer> tokenizer_;
};

TEST_P(TokenizerGoldenTest, EveryStringGivesTheReferenceTokens) {
  for (const Json& test_case : golden_["cases"]) {
    const std::string text = test_case[0].get<std::string>();
    SCOPED_TRACE(absl::CHexEscape(text));
    const EncodeOptions options[] = {
        {}, {.parse_special = true}, {.add_special = true, .parse_special = true}};
    for (size_t i = 0; i < std::size(options); ++i) {
      if (test_case[i + 1].is_null()) continue;
      EXPECT_EQ(Json(tokenizer_->Encode(text, options[i])), test_case[i + 1]) << "option " << i;
    }
  }
}

TEST_P(TokenizerGoldenTest, EveryRenderedPromptGivesTheReferenceTokens) {
  ASSERT_FALSE(golden_["rendered"].empty());
  for (const Json& test_case : golden_["rendered"]) {
    const std::string text = test_case[0].get<std::string>();
    EXPECT_EQ(Json(tokenizer_->EncodeRendered(text)), test_case[1]) << text;
  }
}

TEST_P(TokenizerGoldenTest, StreamingGivesTheTextBack) {
  for (const Json& test_case : golden_["cases"]) {
    const std::string text = test_case[0].get<std::string>();
    EXPECT_EQ(Stream(tokenizer_->Encode(text, {}), false), text);
    EXPECT_EQ(Stream(tokenizer_->Encode(text, {.parse_special = true}), true), text);
  }
}

TEST_P(TokenizerGoldenTest, EveryTokenHasTheReferencePieceAndKind) {
  constexpr int kUnused = 2, kControl = 8, kUserDefined = 16;
  for (size_t i = 0; i < golden_["pieces"].size(); ++i) {
    const auto id = static_cast<TokenId>(i);
    const std::string piece(tokenizer_->Piece(id, /*show_special=*/true));
    EXPECT_EQ(absl::BytesToHexString(piece), golden_["pieces"][i][0].get<std::string>()) << i;
    const int attributes = golden_["pieces"][i][1].get<int>();
    const TokenKind kind = (attributes & kControl) != 0       ? TokenKind::kControl
                           : (attributes & kUserDefined) != 0 ? TokenKind::kUserDefined
                           : (attributes & kUnused) != 0      ? TokenKind::kUnused
                                                              : TokenKind::kNormal;
    EXPECT_EQ(tokenizer_->kind(id), kind) << i;
    const bool hidden = kind == TokenKind::kControl;
    EXPECT_EQ(std::string(tokenizer_->Piece(id, false)), hidden ? "" : piece) << i;
  }
}

TEST_P(TokenizerGoldenTest, TheSameTokensEndAGeneration) {
  if (golden_["eog"].is_null()) return;  // not recorded for this tokenizer
  std::vector<TokenId> ends;
  for (TokenId id = 0; id < tokenizer_->vocab_size(); ++id) {
    if (tokenizer_->IsEndOfGeneration(id)) ends.push_back(id);
  }
  EXPECT_EQ(Json(ends), golden_["eog"]);
}

INSTANTIATE_TEST_SUITE_P(All, TokenizerGoldenTest,
                         testing::Values("deepseek2-f32", "glm5-f32", "glm52-f32", "glm52-iq2",
                                         "qwen35moe-f32", "qwen35moe-iq2", "qwen3moe-f32",
                                         "primary", "sidecar"));

}  // namespace
}  // namespace packtrain

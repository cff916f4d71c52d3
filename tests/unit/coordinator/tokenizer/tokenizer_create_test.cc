// What Tokenizer::Create refuses, and how it says so.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "coordinator/tokenizer/tokenizer.h"
#include "tests/support/gguf_writer.h"
#include "tests/support/test_files.h"
#include "tests/support/tokenizer_files.h"

namespace packtrain {
namespace {

using testing::AllOf;
using testing::HasSubstr;

// A complete tokenizer, of which a test spoils or leaves out one thing.
struct Parts {
  const char* model = "gpt2";
  const char* pre = "glm4";
  std::vector<std::string> tokens = {"a", "b", "ab", "<end>"};
  std::vector<int32_t> types = {1, 1, 1, 3};
  std::vector<std::string> merges = {"a b"};
  std::vector<float> scores = {};
  uint32_t eos = 3;
};

absl::StatusOr<std::unique_ptr<Tokenizer>> Create(const Parts& parts) {
  GgufWriter writer;
  if (parts.model != nullptr) writer.AddString("tokenizer.ggml.model", parts.model);
  if (parts.pre != nullptr) writer.AddString("tokenizer.ggml.pre", parts.pre);
  if (!parts.tokens.empty()) writer.AddStringArray("tokenizer.ggml.tokens", parts.tokens);
  writer.AddI32Array("tokenizer.ggml.token_type", parts.types);
  writer.AddStringArray("tokenizer.ggml.merges", parts.merges);
  if (!parts.scores.empty()) writer.AddF32Array("tokenizer.ggml.scores", parts.scores);
  writer.AddU32("tokenizer.ggml.eos_token_id", parts.eos);
  const std::string bytes = writer.Finish();
  const auto file = GgufFile::Parse(AsBytes(bytes), "m.gguf");
  EXPECT_TRUE(file.ok()) << file.status();
  return Tokenizer::Create(**file);
}

std::string Message(const Parts& parts) { return std::string(Create(parts).status().message()); }

TEST(TokenizerCreateTest, ACompleteFileIsAccepted) {
  const auto tokenizer = Create({});
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_EQ((*tokenizer)->vocab_size(), 4);
  EXPECT_EQ((*tokenizer)->eos(), 3);
  EXPECT_EQ((*tokenizer)->bos(), -1);
  EXPECT_EQ((*tokenizer)->Encode("abz", {}), (std::vector<TokenId>{2}));  // no token for z
}

TEST(TokenizerCreateTest, UnknownModelAndPreTokenizerNameWhatIsKnown) {
  EXPECT_THAT(Message({.model = "wordpiece"}),
              AllOf(HasSubstr("m.gguf"), HasSubstr("wordpiece"), HasSubstr("gpt2")));
  EXPECT_THAT(Message({.pre = "klingon"}),
              AllOf(HasSubstr("tokenizer.ggml.pre"), HasSubstr("klingon"), HasSubstr("qwen35")));
}

TEST(TokenizerCreateTest, AbsentKeysAreNamed) {
  EXPECT_EQ(Create({.model = nullptr}).status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(Message({.model = nullptr}), HasSubstr("tokenizer.ggml.model"));
  EXPECT_THAT(Message({.pre = nullptr}), HasSubstr("tokenizer.ggml.pre"));
  EXPECT_THAT(Message({.tokens = {}}), HasSubstr("tokenizer.ggml.tokens"));
  EXPECT_THAT(Message({.model = "llama"}), HasSubstr("tokenizer.ggml.scores"));
}

TEST(TokenizerCreateTest, TablesThatDoNotFitTogetherAreRefused) {
  EXPECT_THAT(Message({.types = {1, 1}}), HasSubstr("2 entries for 4 tokens"));
  EXPECT_THAT(Message({.types = {1, 1, 1, 7}}), HasSubstr("entry 3 is 7, allowed 1..6"));
  EXPECT_THAT(Message({.merges = {"a b", "ab"}}), HasSubstr("entry 1 is \"ab\""));
  EXPECT_THAT(Message({.merges = {""}}), HasSubstr("entry 0"));
  EXPECT_THAT(Message({.eos = 4}), HasSubstr("4, allowed 0..3"));
  EXPECT_THAT(Message({.model = "llama", .scores = {0, 0}}), HasSubstr("2 entries for 4 tokens"));
  EXPECT_THAT(Message({.model = "llama", .scores = {0, 0, 0, NAN}}), HasSubstr("entry 3"));
}

TEST(TokenizerCreateTest, TokensThatEndATurnAreKnownByTheirTextAndAreControlTokens) {
  const auto tokenizer = Create({.tokens = {"a", "b", "<|im_end|>", "<x>"}, .types = {1, 1, 4, 3}});
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_TRUE((*tokenizer)->IsEndOfGeneration(2));
  EXPECT_TRUE((*tokenizer)->IsEndOfGeneration(3));
  EXPECT_FALSE((*tokenizer)->IsEndOfGeneration(0));
  EXPECT_EQ((*tokenizer)->kind(2), TokenKind::kControl);
}

TEST(TokenizerCreateTest, ARenderedTemplateGetsBosOnce) {
  GgufWriter writer;
  writer.AddString("tokenizer.ggml.model", "gpt2");
  writer.AddString("tokenizer.ggml.pre", "glm4");
  writer.AddStringArray("tokenizer.ggml.tokens", {"a", "<s>"});
  writer.AddI32Array("tokenizer.ggml.token_type", {1, 3});
  writer.AddStringArray("tokenizer.ggml.merges", {});
  writer.AddU32("tokenizer.ggml.bos_token_id", 1);
  writer.AddBool("tokenizer.ggml.add_bos_token", true);
  const std::string bytes = writer.Finish();
  const auto tokenizer = Tokenizer::Create(*GgufFile::Parse(AsBytes(bytes), "m.gguf").value());
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_EQ((*tokenizer)->EncodeRendered("a"), (std::vector<TokenId>{1, 0}));
  EXPECT_EQ((*tokenizer)->EncodeRendered("<s>a"), (std::vector<TokenId>{1, 0}));
}

}  // namespace
}  // namespace packtrain

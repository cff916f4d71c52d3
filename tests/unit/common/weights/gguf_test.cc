// What the golden files do not cover: typed getters, messages, system errors, split sets written
// here, and the size of a real vocabulary.

#include "common/weights/gguf.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <cstring>

#include "tests/support/gguf_writer.h"
#include "tests/support/test_files.h"

namespace packtrain {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::StartsWith;

class GgufTest : public testing::Test {
 protected:
  GgufTest() {
    writer_.AddU32("u32", 7);
    writer_.AddI32("minus", -1);
    writer_.AddU64("big", uint64_t{1} << 32);
    writer_.AddF32("f32", 0.25f);
    writer_.AddBool("bool", true);
    writer_.AddString("string", "text");
    writer_.AddI32Array("ints", {-1, 2});
    writer_.AddBoolArray("bools", {true, false});
    writer_.AddF32Array("floats", {0.5f, -2.0f});
    writer_.AddStringArray("strings", {"a", "", "b"});
    writer_.AddF32Tensor("w", {2, 2}, std::vector<float>{1, 2, 3, 4});
    writer_.AddTensor("q", TensorType::kQ8_0, {32}, std::string(34, 'q'));
    bytes_ = writer_.Finish();
    auto file = GgufFile::Parse(AsBytes(bytes_), "m.gguf");
    EXPECT_TRUE(file.ok()) << file.status();
    file_ = *std::move(file);
  }

  GgufWriter writer_;
  std::string bytes_;
  std::unique_ptr<GgufFile> file_;
};

TEST_F(GgufTest, GettersReturnWhatTheFileHolds) {
  EXPECT_EQ(file_->GetU32("u32").value(), 7u);
  EXPECT_EQ(file_->GetU64("u32").value(), 7u);
  EXPECT_EQ(file_->GetU64("big").value(), uint64_t{1} << 32);
  EXPECT_EQ(file_->GetF32("f32").value(), 0.25f);
  EXPECT_TRUE(file_->GetBool("bool").value());
  EXPECT_EQ(file_->GetString("string").value(), "text");
  EXPECT_THAT(file_->GetIntArray("ints").value(), ElementsAre(-1, 2));
  EXPECT_THAT(file_->GetIntArray("bools").value(), ElementsAre(1, 0));
  EXPECT_THAT(file_->GetFloatArray("floats").value(), ElementsAre(0.5f, -2.0f));
  EXPECT_THAT(file_->GetStringArray("strings").value(), ElementsAre("a", "", "b"));
}

TEST_F(GgufTest, GettersRefuseWrongTypesAndRangesAndNameKeyAndFile) {
  EXPECT_EQ(file_->GetU32("absent").status().code(), absl::StatusCode::kNotFound);
  const absl::Status wrong[] = {
      file_->GetU32("big").status(),         file_->GetU32("minus").status(),
      file_->GetU64("f32").status(),         file_->GetU32("ints").status(),
      file_->GetF32("u32").status(),         file_->GetBool("u32").status(),
      file_->GetString("ints").status(),     file_->GetIntArray("u32").status(),
      file_->GetIntArray("floats").status(), file_->GetIntArray("strings").status(),
      file_->GetFloatArray("ints").status(), file_->GetStringArray("ints").status(),
  };
  for (const absl::Status& status : wrong) {
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr("m.gguf: field '")) << status;
  }
  EXPECT_EQ(wrong[0].message(),
            "[bad_value] m.gguf: field 'big': 4294967296, allowed 0..4294967295");
}

TEST_F(GgufTest, TensorsKeepTheirBytes) {
  const GgufTensor* tensor = file_->FindTensor("w");
  ASSERT_NE(tensor, nullptr);
  EXPECT_EQ(tensor->elements(), 4u);
  EXPECT_EQ(tensor->dim(1), 2u);
  EXPECT_EQ(tensor->dim(2), 1u);
  ASSERT_EQ(file_->Data(*tensor).size(), 16u);
  float last;
  std::memcpy(&last, file_->Data(*tensor).data() + 12, 4);
  EXPECT_EQ(last, 4.0f);
  EXPECT_EQ(file_->Data(*file_->FindTensor("q")).back(), std::byte{'q'});
  EXPECT_EQ(file_->FindTensor("absent"), nullptr);
}

TEST_F(GgufTest, EveryProperPrefixOfAFileIsRefused) {
  for (size_t size = 0; size < bytes_.size(); ++size) {
    const auto cut = GgufFile::Parse(AsBytes(bytes_).first(size), "m.gguf");
    ASSERT_EQ(cut.status().code(), absl::StatusCode::kDataLoss) << size;
  }
}

TEST(GgufOpenTest, AnEndThatWrapsAroundIsRefused) {
  GgufWriter writer;
  writer.AddTensor("a", TensorType::kF16, {16}, std::string(32, 'a'));
  writer.AddTensor("b", TensorType::kF16, {16}, std::string(32, 'b'));
  std::string bytes = writer.Finish();
  // Gives b, at offset 32, a size of 2^64 - 32 bytes.
  const uint64_t dim = (uint64_t{1} << 63) - 16;
  const size_t name = bytes.find("b", bytes.find("a") + 1);
  std::memcpy(bytes.data() + name + 1 + sizeof(uint32_t), &dim, sizeof(dim));
  const auto file = GgufFile::Parse(AsBytes(bytes), "m.gguf");
  EXPECT_THAT(std::string(file.status().message()), StartsWith("[offset_range] m.gguf: "));
}

TEST(GgufOpenTest, SystemErrorsAreStatuses) {
  TempDir dir;
  const auto absent = GgufFile::Open(dir.File("absent.gguf"));
  EXPECT_EQ(absent.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(absent.status().message()), StartsWith("[not_found] " + dir.path()));
  EXPECT_EQ(GgufFile::Open(dir.path()).status().code(), absl::StatusCode::kFailedPrecondition);
  ASSERT_EQ(mkfifo(dir.File("pipe").c_str(), 0600), 0);
  EXPECT_EQ(GgufFile::Open(dir.File("pipe")).status().code(),
            absl::StatusCode::kFailedPrecondition);
}

TEST(GgufOpenTest, HostileNamesAreEscapedInMessages) {
  GgufWriter writer;
  writer.AddString("general.alignment\n\x1b[31m", "x");
  writer.AddString("general.alignment\n\x1b[31m", "x");
  const std::string bytes = writer.Finish();
  const auto file = GgufFile::Parse(AsBytes(bytes), "m.gguf");
  EXPECT_EQ(file.status().message(),
            "[duplicate_key] m.gguf: field 'key general.alignment\\n\\x1b[31m': stands twice");
}

// Writes piece `number` (0-based) of `count`, with one tensor named by it.
void WritePiece(const std::string& path, uint32_t number, uint32_t count, int32_t tensors) {
  GgufWriter writer;
  writer.AddU32("split.no", number);
  writer.AddU32("split.count", count);
  writer.AddI32("split.tensors.count", tensors);
  writer.AddF32Tensor("t" + std::to_string(number), {1}, std::vector<float>{float(number)});
  writer.WriteTo(path);
}

TEST(GgufOpenTest, TensorsOfASplitSetComeFromTheirOwnPiece) {
  TempDir dir;
  WritePiece(dir.File("m-00001-of-00002.gguf"), 0, 2, 2);
  WritePiece(dir.File("m-00002-of-00002.gguf"), 1, 2, 2);
  const auto file = GgufFile::Open(dir.File("m-00001-of-00002.gguf"));
  ASSERT_TRUE(file.ok()) << file.status();
  ASSERT_EQ((*file)->shards().size(), 2u);
  const GgufTensor* tensor = (*file)->FindTensor("t1");
  ASSERT_NE(tensor, nullptr);
  EXPECT_EQ(tensor->shard, 1u);
  float value;
  std::memcpy(&value, (*file)->Data(*tensor).data(), 4);
  EXPECT_EQ(value, 1.0f);
}

TEST(GgufOpenTest, OpeningALaterPieceNamesTheFirst) {
  TempDir dir;
  WritePiece(dir.File("m-00002-of-00002.gguf"), 1, 2, 2);
  const auto file = GgufFile::Open(dir.File("m-00002-of-00002.gguf"));
  EXPECT_THAT(std::string(file.status().message()), StartsWith("[split_order]"));
  EXPECT_THAT(std::string(file.status().message()), HasSubstr("-00001-of-00002.gguf"));
}

TEST(GgufOpenTest, AVocabularyOfARealModelIsReadWhole) {
  constexpr int kTokens = 250000;
  std::vector<std::string> tokens;
  for (int i = 0; i < kTokens; ++i) tokens.push_back("token" + std::to_string(i));
  GgufWriter writer;
  writer.AddStringArray("tokenizer.ggml.tokens", tokens);
  writer.AddI32Array("tokenizer.ggml.token_type", std::vector<int32_t>(kTokens, 1));
  const std::string bytes = writer.Finish();
  const auto file = GgufFile::Parse(AsBytes(bytes), "m.gguf");
  ASSERT_TRUE(file.ok()) << file.status();
  const auto read = (*file)->GetStringArray("tokenizer.ggml.tokens");
  ASSERT_EQ(read->size(), tokens.size());
  EXPECT_EQ(read->back(), tokens.back());
  EXPECT_EQ((*file)->GetIntArray("tokenizer.ggml.token_type")->size(), tokens.size());
}

}  // namespace
}  // namespace packtrain

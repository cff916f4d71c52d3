// Aim: frames become bundles whatever pieces they arrive in, and hostile frames are DATA_LOSS
// without memory taken for them. Method: frames made by hand from proto/tensor.proto.

#include "worker/transport/frame_assembler.h"

#include <gtest/gtest.h>

#include <cstring>

#include "proto/tensor.pb.h"
#include "worker/transport/bundle_codec.h"

namespace packtrain {
namespace {

constexpr size_t kMaxBytes = 4 << 20;

std::string Frame(const v1::FrameHeader& header, const std::string& payload) {
  const std::string head = header.SerializeAsString();
  const uint32_t size = static_cast<uint32_t>(head.size());
  std::string frame(sizeof size, '\0');
  std::memcpy(frame.data(), &size, sizeof size);
  return frame + head + payload;
}

v1::FrameHeader First(uint32_t rows, uint32_t cols, bool last) {
  v1::FrameHeader header;
  v1::TensorHeader* t = header.mutable_bundle()->add_tensors();
  t->set_name("x");
  t->set_type(static_cast<uint32_t>(ElementType::kU8));
  t->set_rows(rows);
  t->set_cols(cols);
  header.mutable_bundle()->set_step_id(7);
  header.set_last(last);
  return header;
}

v1::FrameHeader Next(bool last) {
  v1::FrameHeader header;
  header.set_last(last);
  return header;
}

class FrameAssemblerTest : public testing::Test {
 protected:
  absl::StatusOr<bool> Add(const std::string& frame) {
    const std::string_view piece = frame;
    return assembler_.Add(std::span(&piece, 1), &bundle_);
  }
  void ExpectRefused(const std::string& frame) {
    const auto complete = Add(frame);
    EXPECT_EQ(complete.status().code(), absl::StatusCode::kDataLoss) << complete.status();
  }

  FrameAssembler assembler_{kMaxBytes};
  Bundle bundle_;
};

TEST_F(FrameAssemblerTest, ABundleArrivesWhateverPiecesItsFramesComeIn) {
  std::string payload(1000, '\0');
  for (size_t i = 0; i < payload.size(); ++i) payload[i] = static_cast<char>(i * 7);
  const std::string one = Frame(First(10, 100, false), payload.substr(0, 613));
  const std::string two = Frame(Next(true), payload.substr(613));
  for (const size_t piece : {size_t{1}, size_t{3}, size_t{64}, size_t{100000}}) {
    for (const std::string* frame : {&one, &two}) {
      std::vector<std::string_view> pieces = {""};
      for (size_t at = 0; at < frame->size(); at += piece) {
        pieces.push_back(std::string_view(*frame).substr(at, piece));
      }
      const auto complete = assembler_.Add(pieces, &bundle_);
      ASSERT_TRUE(complete.ok()) << complete.status();
      EXPECT_EQ(*complete, frame == &two);
    }
    ASSERT_EQ(bundle_.tensors.size(), 1u);
    EXPECT_EQ(bundle_.step_id, 7u);
    EXPECT_EQ(assembler_.bundle_bytes(), 1000u);
    EXPECT_EQ(std::memcmp(bundle_.tensors[0].data.data(), payload.data(), 1000), 0);
  }
}

TEST_F(FrameAssemblerTest, ATensorWithoutElementsIsPassedOver) {
  v1::FrameHeader header = First(0, 100, true);
  *header.mutable_bundle()->add_tensors() = First(1, 3, true).bundle().tensors(0);
  const auto complete = Add(Frame(header, "abc"));
  ASSERT_TRUE(complete.ok()) << complete.status();
  EXPECT_EQ(std::memcmp(bundle_.tensors[1].data.data(), "abc", 3), 0);
}

TEST_F(FrameAssemblerTest, AFrameTooShortForItsHeaderIsRefused) {
  const std::string frame = Frame(First(1, 3, true), "abc");
  ExpectRefused("");
  ExpectRefused(frame.substr(0, 3));
  ExpectRefused(frame.substr(0, 10));
}

TEST_F(FrameAssemblerTest, AHeaderLengthBeyondTheLimitIsRefused) {
  std::string frame = Frame(First(1, 3, true), std::string(20000, 'x'));
  const uint32_t size = 10000;
  std::memcpy(frame.data(), &size, sizeof size);
  ExpectRefused(frame);
  std::memset(frame.data(), 0xff, sizeof size);
  ExpectRefused(frame);
}

TEST_F(FrameAssemblerTest, AHeaderOfNoMessageIsRefused) {
  std::string frame = Frame(First(1, 3, true), "abc");
  frame[4] = static_cast<char>(0xff);
  ExpectRefused(frame);
}

TEST_F(FrameAssemblerTest, FramesOutOfOrderAreRefused) {
  ExpectRefused(Frame(Next(true), "abc"));
  ASSERT_TRUE(Add(Frame(First(1, 6, false), "abc")).ok());
  ExpectRefused(Frame(First(1, 6, false), "abc"));
}

TEST_F(FrameAssemblerTest, MorePayloadThanToldIsRefused) {
  ExpectRefused(Frame(First(1, 3, true), "abcd"));
}

TEST_F(FrameAssemblerTest, LessPayloadThanToldIsRefused) {
  ExpectRefused(Frame(First(1, 3, true), "ab"));
}

TEST_F(FrameAssemblerTest, FramesWithoutPayloadCannotGoOnForever) {
  ExpectRefused(Frame(First(1, 3, false), ""));
}

TEST_F(FrameAssemblerTest, AFrameBeyondOneMebibyteIsRefused) {
  ExpectRefused(Frame(First(2, 1 << 20, true), std::string(kFrameBytesMax + 1, 'x')));
}

TEST_F(FrameAssemblerTest, ShapesBeyondTheLinksLimitTakeNoMemory) {
  for (const auto& [rows, cols] : std::vector<std::pair<uint32_t, uint32_t>>{
           {1, kMaxBytes + 1}, {0xffffffff, 0xffffffff}, {0x80000000, 2}}) {
    ExpectRefused(Frame(First(rows, cols, true), "x"));
    EXPECT_TRUE(bundle_.tensors.empty());
  }
}

TEST_F(FrameAssemblerTest, TooManyTensorsLongNamesAndUnknownTypesAreRefused) {
  v1::FrameHeader many = First(1, 1, true);
  for (size_t i = 0; i < kMaxBundleTensors; ++i) {
    *many.mutable_bundle()->add_tensors() = many.bundle().tensors(0);
  }
  ExpectRefused(Frame(many, std::string(kMaxBundleTensors + 1, 'x')));
  v1::FrameHeader named = First(1, 1, true);
  named.mutable_bundle()->mutable_tensors(0)->set_name(std::string(kMaxTensorNameBytes + 1, 'n'));
  ExpectRefused(Frame(named, "x"));
  v1::FrameHeader typed = First(1, 1, true);
  typed.mutable_bundle()->mutable_tensors(0)->set_type(4);
  ExpectRefused(Frame(typed, "x"));
}

}  // namespace
}  // namespace packtrain

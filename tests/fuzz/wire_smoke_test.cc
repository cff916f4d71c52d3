// Mutations of valid wire messages, and a canary: decoders with one planted fault, which the same
// run must find.

#include <google/protobuf/stubs/logging.h>
#include <gtest/gtest.h>

#include <cstring>

#include "common/rpc/step_codec.h"
#include "proto/control.pb.h"
#include "proto/tensor.pb.h"
#include "tests/fuzz/fuzz_targets.h"
#include "tests/fuzz/smoke.h"

namespace packtrain {
namespace {

constexpr SmokeOptions kSmoke = {.seed = 20260102, .rounds = 20000};

std::vector<std::string> Steps() {
  std::vector<std::string> corpus;
  for (int kind = 0; kind < 3; ++kind) {
    Step step;
    step.id = 300;
    for (int slot = 0; slot <= kind; ++slot) {
      StepSequence s;
      s.slot = slot;
      s.tokens = {1, 999, 500};
      if (kind == 0) {
        s.begin.emplace();
        s.start = 2;
        s.begin->history = {7, 8};
        s.begin->sampling.logit_bias = {{5, 1}};
      }
      s.pages = {63, slot};
      s.page_copies = {{1, 2}};
      s.save_snapshot = 3;
      s.output = StepOutputKind::kSample;
      step.sequences.push_back(s);
    }
    v1::CoordinatorMessage message;
    message.mutable_steps()->set_epoch(1);
    EncodeStep(step, message.mutable_steps()->add_steps());
    corpus.push_back(message.SerializeAsString());
  }
  return corpus;
}

void AppendFrame(const v1::FrameHeader& header, const std::string& payload, std::string* out) {
  const std::string head = header.SerializeAsString();
  const uint32_t size = static_cast<uint32_t>(head.size());
  const uint16_t frame = static_cast<uint16_t>(sizeof size + size + payload.size());
  out->append(reinterpret_cast<const char*>(&frame), sizeof frame);
  out->append(reinterpret_cast<const char*>(&size), sizeof size);
  out->append(head + payload);
}

std::vector<std::string> Frames() {
  v1::FrameHeader first;
  first.mutable_bundle()->set_epoch(3);
  for (const char* name : {"hidden", "selection"}) {
    v1::TensorHeader* t = first.mutable_bundle()->add_tensors();
    t->set_name(name);
    t->set_rows(4);
    t->set_cols(8);
  }
  v1::FrameHeader last;
  last.set_last(true);
  std::string two;
  AppendFrame(first, std::string(100, 'x'), &two);
  AppendFrame(last, std::string(156, 'y'), &two);
  first.set_last(true);
  first.mutable_bundle()->clear_tensors();
  first.mutable_bundle()->set_error("failed");
  std::string error;
  AppendFrame(first, "", &error);
  return {two, error, two + error};
}

// Looks up the pages of a step without checking them.
std::string StepsWithAFault(std::span<const std::byte> bytes) {
  v1::CoordinatorMessage message;
  if (!message.ParseFromArray(bytes.data(), static_cast<int>(bytes.size()))) return "";
  for (const v1::Step& step : message.steps().steps()) {
    for (const v1::StepSequence& s : step.sequences()) {
      for (const int32_t page : s.pages()) {
        if (page < 0 || page >= 64) return "would look up a page that is not there";
      }
    }
  }
  return "";
}

// Believes the length in front of a frame's header.
std::string FramesWithAFault(std::span<const std::byte> bytes) {
  uint32_t size = 0;
  if (bytes.size() < 6) return "";
  std::memcpy(&size, bytes.data() + 2, sizeof size);
  return size > bytes.size() - 6 ? "would read outside the frame" : "";
}

class WireSmokeTest : public testing::Test {
 protected:
  // The library complains of every text that is not UTF-8.
  static void SetUpTestSuite() { google::protobuf::SetLogHandler(nullptr); }
};

TEST_F(WireSmokeTest, NoMutationOfAStepBreaksTheDecoder) {
  EXPECT_EQ(RunSmoke(Steps(), kSmoke, FuzzStep), "");
}

TEST_F(WireSmokeTest, NoMutationOfFramesBreaksTheAssembler) {
  EXPECT_EQ(RunSmoke(Frames(), kSmoke, FuzzFrames), "");
}

TEST_F(WireSmokeTest, TheCanariesAreFoundByMutation) {
  EXPECT_NE(RunSmoke(Steps(), kSmoke, StepsWithAFault), "");
  EXPECT_NE(RunSmoke(Frames(), kSmoke, FramesWithAFault), "");
}

}  // namespace
}  // namespace packtrain

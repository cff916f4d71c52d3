// Aim: steps and results come back as they went, and no hostile message becomes a step. Method: one
// valid message, of which each case damages one field.

#include "common/rpc/step_codec.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>

#include "proto/control.pb.h"

namespace packtrain {
namespace {

constexpr StepLimits kLimits{
    .num_slots = 4, .num_pages = 8, .num_snapshots = 2, .max_tokens = 6, .vocab_size = 100};

Step MakeStep() {
  Step step;
  step.id = 77;
  StepSequence s;
  s.slot = 3;
  s.start = 2;
  s.tokens = {99, 0, 5};
  s.begin.emplace();
  s.begin->sampling.temperature = 0.75F;
  s.begin->sampling.top_k = 40;
  s.begin->sampling.top_p = 0.5F;
  s.begin->sampling.min_p = 0.25F;
  s.begin->sampling.repetition_penalty = 1.5F;
  s.begin->sampling.repeat_last_n = 64;
  s.begin->sampling.presence_penalty = -1;
  s.begin->sampling.frequency_penalty = 2;
  s.begin->sampling.logit_bias = {{7, -100}, {8, 3}};
  s.begin->sampling.seed = ~uint64_t{0};
  s.begin->sampling.choice = 3;
  s.begin->prompt_tokens = 5;
  s.begin->history = {1, 2};
  s.pages = {7, 0};
  s.page_copies = {{1, 2}};
  s.restore_snapshot = 1;
  s.save_snapshot = 0;
  s.output = StepOutputKind::kSampleAndPromptLogprobs;
  s.next_token = 42;
  s.top_logprobs = 5;
  step.sequences.push_back(s);
  StepSequence forwarded;
  forwarded.token_from_step = 76;
  forwarded.start = 9;
  forwarded.first_page = 1;
  step.sequences.push_back(forwarded);
  return step;
}

v1::Step MakeMessage() {
  v1::Step message;
  EncodeStep(MakeStep(), &message);
  return message;
}

TEST(StepCodecTest, EveryFieldOfAStepComesBack) {
  v1::Step message = MakeMessage();
  const auto step = DecodeStep(message, kLimits);
  ASSERT_TRUE(step.ok()) << step.status();
  // Encoded again it is the same message, so no field was lost on the way in.
  v1::Step again;
  EncodeStep(*step, &again);
  EXPECT_EQ(again.SerializeAsString(), message.SerializeAsString());
  // Nor on the way out.
  const Step wanted = MakeStep();
  ASSERT_EQ(step->sequences.size(), 2u);
  const StepSequence& s = step->sequences[0];
  const StepSequence& w = wanted.sequences[0];
  EXPECT_EQ(step->id, 77u);
  EXPECT_EQ(s.slot, w.slot);
  EXPECT_EQ(s.start, w.start);
  EXPECT_EQ(s.tokens, w.tokens);
  ASSERT_TRUE(s.begin.has_value());
  EXPECT_EQ(s.begin->history, w.begin->history);
  EXPECT_EQ(s.begin->prompt_tokens, 5);
  const SamplingParams& p = s.begin->sampling;
  EXPECT_EQ(p.temperature, 0.75F);
  EXPECT_EQ(p.top_k, 40);
  EXPECT_EQ(p.top_p, 0.5F);
  EXPECT_EQ(p.min_p, 0.25F);
  EXPECT_EQ(p.repetition_penalty, 1.5F);
  EXPECT_EQ(p.repeat_last_n, 64);
  EXPECT_EQ(p.presence_penalty, -1);
  EXPECT_EQ(p.frequency_penalty, 2);
  ASSERT_EQ(p.logit_bias.size(), 2u);
  EXPECT_EQ(p.logit_bias[0].token_id, 7);
  EXPECT_EQ(p.logit_bias[0].bias, -100);
  EXPECT_EQ(p.seed, ~uint64_t{0});
  EXPECT_EQ(p.choice, 3u);
  EXPECT_EQ(s.pages, w.pages);
  ASSERT_EQ(s.page_copies.size(), 1u);
  EXPECT_EQ(s.page_copies[0].from, 1);
  EXPECT_EQ(s.page_copies[0].to, 2);
  EXPECT_EQ(s.restore_snapshot, 1);
  EXPECT_EQ(s.save_snapshot, 0);
  EXPECT_EQ(s.output, w.output);
  EXPECT_EQ(s.next_token, 42);
  EXPECT_EQ(s.top_logprobs, 5);
  EXPECT_EQ(step->sequences[1].token_from_step, 76u);
  EXPECT_EQ(step->sequences[1].first_page, 1);
  EXPECT_FALSE(step->sequences[1].begin.has_value());
}

struct Damage {
  const char* name;
  const char* complaint;  // part of the message
  std::function<void(v1::Step*)> apply;
};

class StepCodecDamageTest : public testing::TestWithParam<Damage> {};

TEST_P(StepCodecDamageTest, IsRefusedByTheFieldsName) {
  v1::Step message = MakeMessage();
  GetParam().apply(&message);
  const auto step = DecodeStep(message, kLimits);
  EXPECT_EQ(step.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(step.status().message().find(GetParam().complaint), std::string::npos) << step.status();
}

v1::StepSequence* First(v1::Step* m) { return m->mutable_sequences(0); }
v1::SamplingParams* Sampling(v1::Step* m) { return First(m)->mutable_begin()->mutable_sampling(); }
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr int32_t kHuge = std::numeric_limits<int32_t>::max();

INSTANTIATE_TEST_SUITE_P(
    Fields, StepCodecDamageTest,
    testing::Values(
        Damage{"SlotNegative", "slot -1", [](v1::Step* m) { First(m)->set_slot(-1); }},
        Damage{"SlotBeyond", "slot 4", [](v1::Step* m) { First(m)->set_slot(4); }},
        Damage{"SlotTwice", "slot 0 appears twice", [](v1::Step* m) { First(m)->set_slot(0); }},
        Damage{"StartNegative", "start", [](v1::Step* m) { First(m)->set_start(-5); }},
        Damage{"StartHuge", "start", [](v1::Step* m) { First(m)->set_start(kHuge); }},
        Damage{"TokenNegative", "token id", [](v1::Step* m) { First(m)->set_tokens(0, -1); }},
        Damage{"TokenBeyond", "token id 100", [](v1::Step* m) { First(m)->set_tokens(1, 100); }},
        Damage{"HistoryTooShort", "length of history",
               [](v1::Step* m) { First(m)->mutable_begin()->clear_history(); }},
        Damage{"HistoryToken", "token id of history",
               [](v1::Step* m) { First(m)->mutable_begin()->set_history(1, 100); }},
        Damage{"PromptTokens", "prompt_tokens",
               [](v1::Step* m) { First(m)->mutable_begin()->set_prompt_tokens(-1); }},
        Damage{"FirstPage", "first_page", [](v1::Step* m) { First(m)->set_first_page(-1); }},
        Damage{"PageBeyond", "page 8", [](v1::Step* m) { First(m)->set_pages(0, 8); }},
        Damage{"PageNegative", "page -1", [](v1::Step* m) { First(m)->set_pages(1, -1); }},
        Damage{"PageTable", "length of the page table",
               [](v1::Step* m) { First(m)->set_first_page(7); }},
        Damage{"CopyFrom", "copied page",
               [](v1::Step* m) { First(m)->mutable_page_copies(0)->set_from(9); }},
        Damage{"CopyTo", "target page",
               [](v1::Step* m) { First(m)->mutable_page_copies(0)->set_to(-2); }},
        Damage{"Restore", "snapshot", [](v1::Step* m) { First(m)->set_restore_snapshot(2); }},
        Damage{"Save", "snapshot", [](v1::Step* m) { First(m)->set_save_snapshot(-2); }},
        Damage{"Output", "output kind", [](v1::Step* m) { First(m)->set_output(4); }},
        Damage{"NextToken", "next_token", [](v1::Step* m) { First(m)->set_next_token(100); }},
        Damage{"TopLogprobs", "top_logprobs",
               [](v1::Step* m) { First(m)->set_top_logprobs(kHuge); }},
        Damage{"TemperatureNan", "temperature",
               [](v1::Step* m) { Sampling(m)->set_temperature(kNan); }},
        Damage{"TemperatureInfinite", "temperature",
               [](v1::Step* m) { Sampling(m)->set_temperature(kInf); }},
        Damage{"TopP", "top_p", [](v1::Step* m) { Sampling(m)->set_top_p(1.5F); }},
        Damage{"MinP", "min_p", [](v1::Step* m) { Sampling(m)->set_min_p(1.01F); }},
        Damage{"Repetition", "repetition_penalty",
               [](v1::Step* m) { Sampling(m)->set_repetition_penalty(-1); }},
        Damage{"Bias", "logit_bias",
               [](v1::Step* m) { Sampling(m)->mutable_logit_bias(0)->set_bias(kNan); }},
        Damage{"TooManyRows", "number of rows",
               [](v1::Step* m) {
                 for (int i = 0; i < 3; ++i) First(m)->add_tokens(1);
               }},
        Damage{"NoRows", "number of rows", [](v1::Step* m) { m->clear_sequences(); }}),
    [](const auto& param) { return param.param.name; });

TEST(StepCodecTest, AResultComesBackWithItsStatus) {
  StepResult result;
  result.id = 9;
  result.status = absl::UnavailableError("link 'upstream': gone");
  result.outputs.resize(1);
  result.outputs[0].slot = 2;
  result.outputs[0].token = 11;
  result.outputs[0].logprob = -0.5F;
  result.outputs[0].top = {{11, -0.5F}, {3, -2}};
  result.outputs[0].prompt = {{{1, -1}}, {}};
  result.times = {.interval = 9.5F,
                  .experts = 4,
                  .compute = 3,
                  .control = 0.5F,
                  .experts_read = 14.5F,
                  .gpu_operations = 321};
  v1::StepResult message;
  EncodeStepResult(result, &message);
  const StepResult back = DecodeStepResult(message);
  EXPECT_EQ(back.id, 9u);
  EXPECT_EQ(back.status, result.status);
  ASSERT_EQ(back.outputs.size(), 1u);
  EXPECT_EQ(back.outputs[0].slot, 2);
  EXPECT_EQ(back.outputs[0].token, 11);
  EXPECT_EQ(back.outputs[0].logprob, -0.5F);
  ASSERT_EQ(back.outputs[0].top.size(), 2u);
  EXPECT_EQ(back.outputs[0].top[1].id, 3);
  ASSERT_EQ(back.outputs[0].prompt.size(), 2u);
  EXPECT_EQ(back.outputs[0].prompt[0][0].logprob, -1);
  EXPECT_EQ(back.times.interval, 9.5F);
  EXPECT_EQ(back.times.experts, 4);
  EXPECT_EQ(back.times.compute, 3);
  EXPECT_EQ(back.times.control, 0.5F);
  EXPECT_EQ(back.times.hops(), 2);
  EXPECT_EQ(back.times.experts_read, 14.5F);
  EXPECT_EQ(back.times.gpu_operations, 321);
}

TEST(StepCodecTest, AnUnknownStatusCodeIsAnErrorAndNeverOk) {
  v1::StepResult message;
  message.set_code(12345);
  message.set_message("?");
  EXPECT_FALSE(DecodeStepResult(message).status.ok());
}

}  // namespace
}  // namespace packtrain

#include "common/rpc/step_codec.h"

#include <limits>
#include <string_view>
#include <utility>

#include "absl/strings/str_format.h"
#include "common/base/status_macros.h"
#include "common/rpc/status.h"
#include "proto/control.pb.h"

namespace packtrain {
namespace {

void EncodeSampling(const SamplingParams& in, v1::SamplingParams* out) {
  out->set_temperature(in.temperature);
  out->set_top_k(in.top_k);
  out->set_top_p(in.top_p);
  out->set_min_p(in.min_p);
  out->set_repetition_penalty(in.repetition_penalty);
  out->set_repeat_last_n(in.repeat_last_n);
  out->set_presence_penalty(in.presence_penalty);
  out->set_frequency_penalty(in.frequency_penalty);
  for (const LogitBias& bias : in.logit_bias) {
    v1::LogitBias* b = out->add_logit_bias();
    b->set_token_id(bias.token_id);
    b->set_bias(bias.bias);
  }
  out->set_seed(in.seed);
  out->set_choice(in.choice);
}

// Refuses values outside [low, high) with a message that says where.
class RangeChecker {
 public:
  explicit RangeChecker(uint64_t step_id) : step_id_(step_id) {}

  absl::Status Check(std::string_view field, int64_t value, int64_t low, int64_t high) const {
    if (value >= low && value < high) return absl::OkStatus();
    return absl::InvalidArgumentError(
        absl::StrFormat("step %d: %s %d is not in [%d, %d)", step_id_, field, value, low, high));
  }
  // Within [low, high]; NaN never is.
  absl::Status CheckFloat(std::string_view field, float value, float low, float high) const {
    if (value >= low && value <= high) return absl::OkStatus();
    return absl::InvalidArgumentError(
        absl::StrFormat("step %d: %s %g is not in [%g, %g]", step_id_, field, value, low, high));
  }

 private:
  uint64_t step_id_;
};

absl::StatusOr<SamplingParams> DecodeSampling(const v1::SamplingParams& in,
                                              const RangeChecker& range) {
  SamplingParams out;
  out.temperature = in.temperature();
  out.top_k = in.top_k();
  out.top_p = in.top_p();
  out.min_p = in.min_p();
  out.repetition_penalty = in.repetition_penalty();
  out.repeat_last_n = in.repeat_last_n();
  out.presence_penalty = in.presence_penalty();
  out.frequency_penalty = in.frequency_penalty();
  for (const v1::LogitBias& b : in.logit_bias()) out.logit_bias.push_back({b.token_id(), b.bias()});
  out.seed = in.seed();
  out.choice = in.choice();
  constexpr float kMax = std::numeric_limits<float>::max();
  RETURN_IF_ERROR(range.CheckFloat("temperature", out.temperature, 0, kMax));
  RETURN_IF_ERROR(range.CheckFloat("top_p", out.top_p, 0, 1));
  RETURN_IF_ERROR(range.CheckFloat("min_p", out.min_p, 0, 1));
  RETURN_IF_ERROR(range.CheckFloat("repetition_penalty", out.repetition_penalty, 0, kMax));
  RETURN_IF_ERROR(range.CheckFloat("presence_penalty", out.presence_penalty, -kMax, kMax));
  RETURN_IF_ERROR(range.CheckFloat("frequency_penalty", out.frequency_penalty, -kMax, kMax));
  for (const LogitBias& b : out.logit_bias) {
    RETURN_IF_ERROR(range.CheckFloat("logit_bias", b.bias, -kMax, kMax));
  }
  return out;
}

absl::StatusOr<StepSequence> DecodeSequence(const v1::StepSequence& in, const StepLimits& limits,
                                            const RangeChecker& range) {
  constexpr int64_t kMaxPosition = std::numeric_limits<int32_t>::max() / 2;
  StepSequence s;
  s.slot = in.slot();
  RETURN_IF_ERROR(range.Check("slot", s.slot, 0, limits.num_slots));
  s.start = in.start();
  RETURN_IF_ERROR(range.Check("start", s.start, 0, kMaxPosition));
  s.tokens.assign(in.tokens().begin(), in.tokens().end());
  for (TokenId token : s.tokens) {
    RETURN_IF_ERROR(range.Check("token id", token, 0, limits.vocab_size));
  }
  s.token_from_step = in.token_from_step();
  if (in.has_begin()) {
    SequenceStart& begin = s.begin.emplace();
    ASSIGN_OR_RETURN(begin.sampling, DecodeSampling(in.begin().sampling(), range));
    begin.prompt_tokens = in.begin().prompt_tokens();
    RETURN_IF_ERROR(range.Check("prompt_tokens", begin.prompt_tokens, 0, kMaxPosition));
    begin.history.assign(in.begin().history().begin(), in.begin().history().end());
    RETURN_IF_ERROR(range.Check("length of history", static_cast<int64_t>(begin.history.size()),
                                s.start, int64_t{s.start} + 1));
    for (TokenId token : begin.history) {
      RETURN_IF_ERROR(range.Check("token id of history", token, 0, limits.vocab_size));
    }
  }
  s.first_page = in.first_page();
  RETURN_IF_ERROR(range.Check("first_page", s.first_page, 0, kMaxPosition / kPagePositions));
  s.pages.assign(in.pages().begin(), in.pages().end());
  for (int32_t page : s.pages) RETURN_IF_ERROR(range.Check("page", page, 0, limits.num_pages));
  RETURN_IF_ERROR(range.Check("length of the page table",
                              s.first_page + static_cast<int64_t>(s.pages.size()), 0,
                              int64_t{limits.num_pages} + 1));
  for (const v1::PageCopy& copy : in.page_copies()) {
    RETURN_IF_ERROR(range.Check("copied page", copy.from(), 0, limits.num_pages));
    RETURN_IF_ERROR(range.Check("target page", copy.to(), 0, limits.num_pages));
    s.page_copies.push_back({copy.from(), copy.to()});
  }
  s.restore_snapshot = in.restore_snapshot();
  s.save_snapshot = in.save_snapshot();
  RETURN_IF_ERROR(range.Check("snapshot", s.restore_snapshot, -1, limits.num_snapshots));
  RETURN_IF_ERROR(range.Check("snapshot", s.save_snapshot, -1, limits.num_snapshots));
  RETURN_IF_ERROR(range.Check("output kind", in.output(), 0, 4));
  s.output = static_cast<StepOutputKind>(in.output());
  s.next_token = in.next_token();
  RETURN_IF_ERROR(range.Check("next_token", s.next_token, -1, limits.vocab_size));
  s.top_logprobs = in.top_logprobs();
  RETURN_IF_ERROR(range.Check("top_logprobs", s.top_logprobs, -1, 1001));
  return s;
}

void EncodeLogprobs(const std::vector<TokenLogprob>& in,
                    google::protobuf::RepeatedPtrField<v1::TokenLogprob>* out) {
  for (const TokenLogprob& entry : in) {
    v1::TokenLogprob* e = out->Add();
    e->set_id(entry.id);
    e->set_logprob(entry.logprob);
  }
}

std::vector<TokenLogprob> DecodeLogprobs(
    const google::protobuf::RepeatedPtrField<v1::TokenLogprob>& in) {
  std::vector<TokenLogprob> out;
  out.reserve(static_cast<size_t>(in.size()));
  for (const v1::TokenLogprob& e : in) out.push_back({e.id(), e.logprob()});
  return out;
}

}  // namespace

void EncodeStep(const Step& step, v1::Step* out) {
  out->set_id(step.id);
  for (const StepSequence& s : step.sequences) {
    v1::StepSequence* o = out->add_sequences();
    o->set_slot(s.slot);
    o->set_start(s.start);
    o->mutable_tokens()->Add(s.tokens.begin(), s.tokens.end());
    o->set_token_from_step(s.token_from_step);
    if (s.begin) {
      v1::SequenceStart* begin = o->mutable_begin();
      EncodeSampling(s.begin->sampling, begin->mutable_sampling());
      begin->set_prompt_tokens(s.begin->prompt_tokens);
      begin->mutable_history()->Add(s.begin->history.begin(), s.begin->history.end());
    }
    o->set_first_page(s.first_page);
    o->mutable_pages()->Add(s.pages.begin(), s.pages.end());
    for (const PageCopy& copy : s.page_copies) {
      v1::PageCopy* c = o->add_page_copies();
      c->set_from(copy.from);
      c->set_to(copy.to);
    }
    o->set_restore_snapshot(s.restore_snapshot);
    o->set_save_snapshot(s.save_snapshot);
    o->set_output(static_cast<uint32_t>(s.output));
    o->set_top_logprobs(s.top_logprobs);
    o->set_next_token(s.next_token);
  }
}

absl::StatusOr<Step> DecodeStep(const v1::Step& in, const StepLimits& limits) {
  const RangeChecker range(in.id());
  Step step;
  step.id = in.id();
  int64_t rows = 0;
  std::vector<bool> seen(static_cast<size_t>(limits.num_slots), false);
  for (const v1::StepSequence& sequence : in.sequences()) {
    ASSIGN_OR_RETURN(StepSequence s, DecodeSequence(sequence, limits, range));
    if (seen[static_cast<size_t>(s.slot)]) {
      return absl::InvalidArgumentError(
          absl::StrFormat("step %d: slot %d appears twice", step.id, s.slot));
    }
    seen[static_cast<size_t>(s.slot)] = true;
    rows += s.num_tokens();
    step.sequences.push_back(std::move(s));
  }
  RETURN_IF_ERROR(range.Check("number of rows", rows, 1, int64_t{limits.max_tokens} + 1));
  return step;
}

void EncodeStepResult(const StepResult& result, v1::StepResult* out) {
  out->set_id(result.id);
  out->set_code(WireCode(result.status));
  out->set_message(std::string(result.status.message()));
  for (const SequenceOutput& output : result.outputs) {
    v1::SequenceOutput* o = out->add_outputs();
    o->set_slot(output.slot);
    o->set_token(output.token);
    o->set_logprob(output.logprob);
    EncodeLogprobs(output.top, o->mutable_top());
    for (const auto& position : output.prompt) {
      EncodeLogprobs(position, o->add_prompt()->mutable_logprobs());
    }
  }
  v1::StepResult::Times* times = out->mutable_times();
  times->set_interval(result.times.interval);
  times->set_experts(result.times.experts);
  times->set_compute(result.times.compute);
  times->set_control(result.times.control);
  times->set_experts_read(result.times.experts_read);
  times->set_gpu_operations(result.times.gpu_operations);
}

StepResult DecodeStepResult(const v1::StepResult& in) {
  StepResult result;
  result.id = in.id();
  result.status = StatusFromWire(in.code(), in.message());
  for (const v1::SequenceOutput& o : in.outputs()) {
    SequenceOutput output;
    output.slot = o.slot();
    output.token = o.token();
    output.logprob = o.logprob();
    output.top = DecodeLogprobs(o.top());
    for (const auto& position : o.prompt()) {
      output.prompt.push_back(DecodeLogprobs(position.logprobs()));
    }
    result.outputs.push_back(std::move(output));
  }
  const v1::StepResult::Times& times = in.times();
  result.times = {times.interval(), times.experts(),      times.compute(),
                  times.control(),  times.experts_read(), times.gpu_operations()};
  return result;
}

}  // namespace packtrain

#pragma once

// One step as the coordinator plans it and the workers run it: what changed since the step before,
// nothing more. Plain values; proto/control.proto carries the same fields over the wire.

#include <algorithm>
#include <cstdint>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "common/model/sampling.h"
#include "common/model/token.h"

namespace packtrain {

// Positions per KV page, the same on every stage and device.
inline constexpr int kPagePositions = 64;

// Copies one page's contents inside every stage (a shared page that is about to be appended to).
struct PageCopy {
  int32_t from = 0;
  int32_t to = 0;
};

// What the last stage needs to sample for a slot; sent with the first step of a sequence.
struct SequenceStart {
  SamplingParams sampling;
  int32_t prompt_tokens = 0;     // how many leading ids are prompt (penalties may tell them apart)
  std::vector<TokenId> history;  // ids in front of the first step's tokens (a reused prefix)
};

enum class StepOutputKind : uint8_t {
  kNone,            // a prefill chunk that is not the last
  kSample,          // sample after the last token
  kPromptLogprobs,  // log-probability of each token given those before it; no sampling
  kSampleAndPromptLogprobs,
};

// The part of one slot in a step: consecutive tokens of one sequence.
struct StepSequence {
  int32_t slot = 0;
  int32_t start = 0;            // absolute position of the first token
  std::vector<TokenId> tokens;  // empty: one token, the output of step `token_from_step`, same slot
  uint64_t token_from_step = 0;
  std::optional<SequenceStart> begin;  // present: the slot is reset first
  // The slot's page table is cut to `first_page` entries, then these are appended.
  int32_t first_page = 0;
  std::vector<int32_t> pages;
  std::vector<PageCopy> page_copies;  // done before anything else of this step
  // Recurrent state: loaded from this snapshot before, saved to that one after the tokens; -1: no.
  int32_t restore_snapshot = -1;
  int32_t save_snapshot = -1;
  StepOutputKind output = StepOutputKind::kNone;
  // With kPromptLogprobs, in every chunk but the prompt's last: the token after `tokens`.
  TokenId next_token = -1;
  int32_t top_logprobs =
      -1;  // -1: no log-probabilities; 0: of the token alone; else that many more

  int32_t num_tokens() const { return tokens.empty() ? 1 : static_cast<int32_t>(tokens.size()); }
};

// A step is one ubatch: it passes through the stages as a whole. Several steps may be in flight.
struct Step {
  uint64_t id = 0;  // increases by one; a step sees the effects of all earlier ones on its slots
  std::vector<StepSequence> sequences;
};

// Whether a GPU stage computes the routed experts that lie in RAM itself, copying all of a layer,
// in a ubatch of `rows`. `streamed_rows`: from how many on it does so; 0: never.
inline bool StreamsExperts(int streamed_rows, int rows) {
  return streamed_rows > 0 && rows >= streamed_rows;
}

struct TokenLogprob {
  TokenId id = 0;
  float logprob = 0;
};

struct SequenceOutput {
  int32_t slot = 0;
  TokenId token = -1;  // -1: nothing was sampled
  float logprob = 0;   // of `token`, of the unmodified distribution
  std::vector<TokenLogprob> top;
  // For kPromptLogprobs: entry i belongs to the token at start + 1 + i (the first token of a
  // prompt has no prediction); each holds the token's own entry first, then the top ones. As many
  // as tokens, one less in the prompt's last chunk.
  std::vector<std::vector<TokenLogprob>> prompt;
};

// Where the time of a decode step went, in microseconds, and what it took.
struct StepTimes {
  float interval = 0;      // since the end of the step before it; 0: that one decoded other tokens
  float experts = 0;       // the stages waited for experts elsewhere
  float compute = 0;       // the stages were at work otherwise
  float control = 0;       // the first stage waited for the step
  float experts_read = 0;  // distinct ones that experts workers read for a layer, on average
  float gpu_operations = 0;  // kernels and copies of all stages
  // What is left: links, and stages that waited for the one in front.
  float hops() const { return std::max(0.0F, interval - experts - compute - control); }
};

struct StepResult {
  uint64_t id = 0;
  absl::Status status;                  // not OK: the step had no effect that may be relied on
  std::vector<SequenceOutput> outputs;  // of sequences that asked for any
  StepTimes times;
};

}  // namespace packtrain

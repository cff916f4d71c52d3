#include "tests/sim/fake_stages.h"

#include "absl/strings/str_format.h"

namespace packtrain {
namespace {

uint64_t Mix(uint64_t hash, uint64_t value) {
  hash = (hash ^ (value + 0x9e3779b97f4a7c15ULL)) * 0xff51afd7ed558ccdULL;
  return hash ^ (hash >> 32);
}

uint64_t Fold(std::span<const TokenId> ids) {
  uint64_t hash = 1;
  for (TokenId id : ids) hash = Mix(hash, static_cast<uint64_t>(id));
  return hash;
}

TokenId Choose(uint64_t pages, uint64_t state, uint64_t history, uint64_t seed, int end_every) {
  const uint64_t hash = Mix(Mix(Mix(Mix(7, pages), state), history), seed);
  if (hash % static_cast<uint64_t>(end_every) == 0) return kFakeEnd;
  return static_cast<TokenId>(1 + (hash >> 20) % (kFakeVocab - 1));
}

}  // namespace

TokenId FakeNextToken(std::span<const TokenId> ids, uint64_t seed, int end_every) {
  const uint64_t hash = Fold(ids);
  return Choose(hash, hash, hash, seed, end_every);
}

FakeStages::FakeStages(const PipelineLimits& limits, int end_every)
    : limits_(limits), end_every_(end_every) {
  Reset();
}

void FakeStages::Reset() {
  last_step_ = 0;
  slots_.assign(static_cast<size_t>(limits_.num_slots), {});
  pages_.assign(static_cast<size_t>(limits_.num_pages), std::vector<TokenId>(kPagePositions, -1));
  snapshots_.assign(static_cast<size_t>(limits_.num_snapshots), 0);
}

void FakeStages::Violate(const Step& step, const StepSequence& part, const std::string& what) {
  if (!violation_.empty()) return;
  violation_ =
      absl::StrFormat("step %d, slot %d, start %d: %s", step.id, part.slot, part.start, what);
}

StepResult FakeStages::Execute(const Step& step) {
  StepResult result;
  result.id = step.id;
  for (const StepSequence& part : step.sequences) {
    for (const PageCopy& copy : part.page_copies) {
      pages_[static_cast<size_t>(copy.to)] = pages_[static_cast<size_t>(copy.from)];
    }
  }
  int rows = 0;
  for (const StepSequence& part : step.sequences) {
    rows += part.num_tokens();
    RunPart(step, part, &result);
  }
  if (last_step_ != 0 && step.id != last_step_ + 1)
    Violate(step, {}, "step ids do not follow each other");
  if (rows == 0 || rows > limits_.max_tokens) Violate(step, {}, "too many rows, or none");
  last_step_ = step.id;
  return result;
}

void FakeStages::Begin(const StepSequence& part, Slot* slot) {
  *slot = {};
  slot->used = true;
  slot->seed = part.begin->sampling.seed;
  slot->history = part.begin->history;
  slot->positions = static_cast<int>(slot->history.size());
  slot->state = 1;
}

std::vector<TokenId> FakeStages::Contents(const Slot& slot) const {
  std::vector<TokenId> ids;
  for (int p = 0; p < slot.positions; ++p) {
    const int32_t page = slot.pages[static_cast<size_t>(p / kPagePositions)];
    ids.push_back(pages_[static_cast<size_t>(page)][static_cast<size_t>(p % kPagePositions)]);
  }
  return ids;
}

TokenId FakeStages::Sample(const Slot& slot) const {
  const uint64_t history = Fold(slot.history);
  const uint64_t state = limits_.num_snapshots > 0 ? slot.state : history;
  return Choose(Fold(Contents(slot)), state, history, slot.seed, end_every_);
}

void FakeStages::RunPart(const Step& step, const StepSequence& part, StepResult* result) {
  if (part.slot < 0 || part.slot >= limits_.num_slots) {
    return Violate(step, part, "no such slot");
  }
  Slot& slot = slots_[static_cast<size_t>(part.slot)];
  if (part.begin) Begin(part, &slot);
  if (!slot.used) return Violate(step, part, "the slot was never begun");
  if (part.first_page > static_cast<int>(slot.pages.size())) {
    return Violate(step, part, "pages are missing in front of first_page");
  }
  slot.pages.resize(static_cast<size_t>(part.first_page));
  for (int32_t page : part.pages) {
    if (page < 0 || page >= limits_.num_pages) return Violate(step, part, "no such page");
    slot.pages.push_back(page);
  }
  if (part.start != slot.positions) return Violate(step, part, "a gap or an overlap in positions");
  const int end = part.start + part.num_tokens();
  if (end > static_cast<int>(slot.pages.size()) * kPagePositions) {
    return Violate(step, part, "the page table ends too early");
  }
  if (end > limits_.context_length) return Violate(step, part, "beyond the context");
  if (part.restore_snapshot >= 0) {
    slot.state = snapshots_[static_cast<size_t>(part.restore_snapshot)];
  } else if (part.begin && limits_.num_snapshots > 0 && part.start > 0) {
    return Violate(step, part, "recurrent state does not appear from nowhere");
  }

  std::vector<TokenId> tokens = part.tokens;
  if (tokens.empty()) {
    const auto it = slot.sampled.find(part.token_from_step);
    if (it == slot.sampled.end()) return Violate(step, part, "that step sampled nothing here");
    tokens = {it->second};
  }
  SequenceOutput output;
  output.slot = part.slot;
  const bool prompt_logprobs = part.output == StepOutputKind::kPromptLogprobs ||
                               part.output == StepOutputKind::kSampleAndPromptLogprobs;
  for (size_t i = 0; i < tokens.size(); ++i) {
    const size_t page =
        static_cast<size_t>(slot.pages[static_cast<size_t>(slot.positions / kPagePositions)]);
    pages_[page][static_cast<size_t>(slot.positions % kPagePositions)] = tokens[i];
    ++slot.positions;
    slot.state = Mix(slot.state, static_cast<uint64_t>(tokens[i]));
    // A sampled token entered the history when it was sampled.
    if (static_cast<int>(slot.history.size()) < slot.positions) slot.history.push_back(tokens[i]);
    const TokenId next = i + 1 < tokens.size() ? tokens[i + 1] : part.next_token;
    if (prompt_logprobs && next >= 0) {
      output.prompt.push_back({{.id = next, .logprob = -static_cast<float>(next)}});
    }
  }
  if (part.save_snapshot >= 0) snapshots_[static_cast<size_t>(part.save_snapshot)] = slot.state;
  if (part.output == StepOutputKind::kSample ||
      part.output == StepOutputKind::kSampleAndPromptLogprobs) {
    output.token = Sample(slot);
    slot.history.push_back(output.token);
    slot.sampled[step.id] = output.token;
    if (slot.sampled.size() > 4) slot.sampled.erase(slot.sampled.begin());
  }
  if (part.output != StepOutputKind::kNone) result->outputs.push_back(std::move(output));
}

}  // namespace packtrain

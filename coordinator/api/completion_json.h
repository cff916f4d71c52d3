#pragma once

// The JSON that OpenAI's clients expect, whole and in chunks, for chat and text completions.

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "coordinator/api/choice_assembler.h"
#include "coordinator/api/request_parser.h"

namespace packtrain {

struct CompletionUsage {
  int prompt_tokens = 0;
  int cached_tokens = 0;
  int completion_tokens = 0;
  int reasoning_tokens = 0;
};

// Sums over the choices of a request.
struct CompletionTimings {
  double queued_ms = 0;
  double prompt_ms = 0;
  double decode_ms = 0;
  int prompt_evaluated = 0;
  int cached_tokens = 0;
  int decoded = 0;       // tokens
  int decode_steps = 0;  // tokens after the first of each choice
};

class CompletionJson {
 public:
  // `request` and `tokenizer` are borrowed.
  CompletionJson(const CompletionRequest& request, const Tokenizer& tokenizer, std::string model);

  // One choice, in a stream (`finish_reason` null if empty) ...
  std::string FirstChunk(int index, const std::vector<TokenId>& prompt_ids) const;  // chat only
  std::string Chunk(int index, const ChoiceDelta& delta, const std::string& finish_reason,
                    const std::vector<TokenId>* prompt_ids, const CompletionTimings* timings);
  std::string UsageChunk(const CompletionUsage& usage, const CompletionTimings& timings) const;

  // ... or whole.
  void AddChoice(int index, const ChoiceDelta& all, const std::string& finish_reason,
                 const std::vector<TokenId>& prompt_ids);
  std::string Whole(const CompletionUsage& usage, const CompletionTimings& timings);

 private:
  nlohmann::json Envelope(bool chunk) const;
  nlohmann::json ChatLogprobs(const std::vector<TokenEvent>& tokens) const;
  nlohmann::json TextLogprobs(int index, const std::vector<TokenEvent>& tokens);
  std::string PieceText(TokenId id) const;

  const CompletionRequest& request_;
  const Tokenizer& tokenizer_;
  std::string model_;
  std::string id_;
  int64_t created_ = 0;
  std::vector<int64_t> text_offsets_;       // per choice: characters so far
  std::vector<std::string> whole_choices_;  // by index, as JSON
  std::vector<TokenId> chat_prompt_ids_;
};

}  // namespace packtrain

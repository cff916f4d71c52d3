#pragma once

// From one choice's tokens to what the client sees: text cut at stop strings and split into
// reasoning and content, token ids, log-probabilities.

#include <string>
#include <vector>

#include "coordinator/api/deployment.h"
#include "coordinator/api/text_filters.h"
#include "coordinator/tokenizer/tokenizer.h"

namespace packtrain {

struct ChoiceDelta {
  std::string content;
  std::string reasoning;
  std::vector<TokenId> token_ids = {};
  std::vector<TokenEvent> logprobs = {};

  bool empty() const {
    return content.empty() && reasoning.empty() && token_ids.empty() && logprobs.empty();
  }
};

class ChoiceAssembler {
 public:
  struct Options {
    const Tokenizer* tokenizer = nullptr;  // borrowed
    std::vector<std::string> stop = {};
    bool split_reasoning = false;
    bool starts_in_reasoning = false;  // the prompt ends inside a <think> block
    bool logprobs = false;             // whether deltas carry them
    bool token_ids = false;            // the same
    bool ignore_eos = false;
  };
  explicit ChoiceAssembler(Options options);

  // Puts text and log-probabilities of an echoed prompt in front.
  void AddEcho(std::string text, std::vector<TokenEvent> logprobs);
  // Tokens after a stop string matched are ignored.
  void Add(const TokenEvent& token);
  // No more tokens will come: releases what was held back.
  void Finish();
  // What came together since the last call.
  ChoiceDelta Take();

  bool stopped() const { return stop_.matched(); }
  int num_tokens() const { return num_tokens_; }
  int num_reasoning_tokens() const { return num_reasoning_tokens_; }

 private:
  std::string TextOf(TokenId id);
  void AddText(std::string_view text);

  Options options_;
  Detokenizer detokenizer_;
  StopMatcher stop_;
  ReasoningSplitter splitter_;
  ChoiceDelta delta_;
  int num_tokens_ = 0;
  int num_reasoning_tokens_ = 0;
};

}  // namespace packtrain

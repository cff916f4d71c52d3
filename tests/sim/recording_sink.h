#pragma once

// Keeps what a request was told, and whether it was told in order.

#include <utility>
#include <vector>

#include "coordinator/api/deployment.h"

namespace packtrain {

class RecordingSink : public GenerationSink {
 public:
  void OnPromptDone(PromptResult done) override {
    if (finished || prompt_done || !tokens.empty()) wrong_order = true;
    prompt_done = true;
    prompt = std::move(done);
  }
  void OnToken(TokenEvent token) override {
    if (finished || !prompt_done) wrong_order = true;
    tokens.push_back(token.id);
  }
  void OnFinish(GenerationResult r) override {
    if (finished) wrong_order = true;
    finished = true;
    result = std::move(r);
  }

  bool prompt_done = false;
  bool finished = false;
  bool wrong_order = false;
  PromptResult prompt;
  std::vector<TokenId> tokens;
  GenerationResult result;
};

}  // namespace packtrain

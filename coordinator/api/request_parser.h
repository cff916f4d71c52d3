#pragma once

// JSON bodies of requests, checked field by field. Unknown fields are ignored, as other servers
// do; a known field with a wrong type or value is an error that names it and what is allowed.

#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "common/model/sampling.h"
#include "coordinator/api/deployment.h"

namespace packtrain {

enum class CompletionKind { kChat, kText };

struct CompletionRequest {
  CompletionKind kind = CompletionKind::kChat;
  // Text prompts still need encoding; for a chat there is one, rendered.
  struct Prompt {
    std::string text = {};
    std::vector<TokenId> ids = {};
    bool is_ids = false;
    int last_turn_start = 0;  // as GenerationRequest::last_turn_start
  };
  std::vector<Prompt> prompts;
  // Of a chat: the template's variables as a JSON object.
  std::string template_variables;
  // Of a chat: what was asked for, if anything.
  std::optional<bool> thinking;

  SamplingParams sampling;
  int n = 1;
  std::optional<int> max_tokens;
  std::vector<std::string> stop;
  bool stream = false;
  bool include_usage = false;
  bool logprobs = false;
  int top_logprobs = 0;
  bool echo = false;
  bool ignore_eos = false;
  bool return_token_ids = false;
};

// Parses a body into an object. Depth is bounded; invalid UTF-8 is refused.
absl::StatusOr<nlohmann::json> ParseBody(std::string_view body);
// The `model` field; empty if absent.
absl::StatusOr<std::string> ParseModel(const nlohmann::json& body);
absl::StatusOr<CompletionRequest> ParseChatCompletion(const nlohmann::json& body,
                                                      const Deployment& deployment);
absl::StatusOr<CompletionRequest> ParseTextCompletion(const nlohmann::json& body,
                                                      const Deployment& deployment);

struct TokenizeRequest {
  std::string text;
  bool add_special = true;
  bool parse_special = true;
};
absl::StatusOr<TokenizeRequest> ParseTokenize(const nlohmann::json& body);
absl::StatusOr<std::vector<TokenId>> ParseDetokenize(const nlohmann::json& body,
                                                     const Tokenizer& tokenizer);

}  // namespace packtrain

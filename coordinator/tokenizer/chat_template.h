#pragma once

// The Jinja text that a model brings along to turn a conversation into a prompt.

#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace packtrain {

class ChatTemplateHost;

// One model's template. Immutable; any thread may use it.
class ChatTemplate {
 public:
  // `bos` and `eos`: text of the model's tokens, for the variables bos_token and eos_token.
  // `host` must outlive it.
  ChatTemplate(std::string text, std::string bos, std::string eos, ChatTemplateHost* host);

  // `variables_json`: a JSON object with messages and, as wanted, tools, add_generation_prompt,
  // enable_thinking and whatever else the template knows; bos_token and eos_token are added.
  // Errors: as ChatTemplateHost::Render; the message begins with "chat template: ".
  absl::StatusOr<std::string> Render(std::string_view variables_json) const;

  // Renders a one-line conversation, so that a broken template is reported at start.
  absl::Status Check() const;

  // Whether the template reads a variable that switches thinking off and on.
  bool SupportsThinkingSwitch() const { return supports_thinking_switch_; }
  // Whether it reads reasoning_effort.
  bool SupportsReasoningEffort() const { return supports_reasoning_effort_; }
  const std::string& text() const { return text_; }

 private:
  std::string text_;
  std::string token_variables_;  // `"bos_token":"...","eos_token":"..."`
  ChatTemplateHost* host_;
  bool supports_thinking_switch_;
  bool supports_reasoning_effort_;
};

}  // namespace packtrain

#include "coordinator/tokenizer/chat_template.h"

#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "coordinator/tokenizer/chat_template_host.h"

namespace packtrain {
namespace {

std::string JsonString(const std::string& text) {
  return nlohmann::json(text).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

}  // namespace

ChatTemplate::ChatTemplate(std::string text, std::string bos, std::string eos,
                           ChatTemplateHost* host)
    : text_(std::move(text)),
      token_variables_(
          absl::StrCat(R"("bos_token":)", JsonString(bos), R"(,"eos_token":)", JsonString(eos))),
      host_(host),
      // DeepSeek's published templates call the switch `thinking`.
      supports_thinking_switch_(absl::StrContains(text_, "enable_thinking") ||
                                absl::StrContains(text_, "thinking is defined") ||
                                absl::StrContains(text_, "not thinking")),
      supports_reasoning_effort_(absl::StrContains(text_, "reasoning_effort")) {}

absl::StatusOr<std::string> ChatTemplate::Render(std::string_view variables_json) const {
  if (variables_json.empty() || variables_json.front() != '{') {
    return absl::InvalidArgumentError("chat template: the variables are not a JSON object");
  }
  // Ours come first: of two equal keys the child takes the last, and that is the caller's.
  const std::string_view rest = variables_json.substr(1);
  const bool alone = rest.find_first_not_of(" \t\r\n") == rest.find('}');
  std::string variables = absl::StrCat("{", token_variables_, alone ? "" : ",");
  variables += rest;
  absl::StatusOr<std::string> text = host_->Render(text_, variables);
  if (text.ok()) return text;
  return absl::Status(text.status().code(),
                      absl::StrCat("chat template: ", text.status().message()));
}

absl::Status ChatTemplate::Check() const {
  return Render(R"({"messages":[{"role":"user","content":"Hello"}],"add_generation_prompt":true})")
      .status();
}

}  // namespace packtrain

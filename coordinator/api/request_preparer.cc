#include "coordinator/api/request_preparer.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "coordinator/api/api_error.h"
#include "coordinator/api/deployment_table.h"

namespace packtrain {
namespace {

using ::nlohmann::json;

absl::Status CheckServes(const Deployment& deployment) {
  const DeploymentState state = deployment.state();
  if (state == DeploymentState::kReady || state == DeploymentState::kRecovering) {
    return absl::OkStatus();
  }
  const std::string why = deployment.state_message();
  return ApiStatus(absl::StatusCode::kUnavailable, "",
                   absl::StrCat("the model \"", deployment.info().name, "\" is not ready: ",
                                state == DeploymentState::kLoading ? "loading" : "failed",
                                why.empty() ? "" : ", ", why),
                   "model_not_ready");
}

// Whatever goes wrong inside a template is for the sender to know: neither waiting nor another
// server would help, except where the interpreter itself is the trouble.
absl::Status TemplateStatus(const absl::Status& status) {
  if (absl::IsFailedPrecondition(status) || absl::IsUnavailable(status)) {
    return ApiStatus(status.code(), "", std::string(status.message()), "chat_template_unavailable");
  }
  return FieldError("messages", std::string(status.message()), "chat_template_failed");
}

std::vector<TokenId> EncodeChat(const Tokenizer& tokenizer, const std::string& text) {
  std::vector<TokenId> ids = tokenizer.Encode(text, {.add_special = false, .parse_special = true});
  // Templates print the first special tokens themselves, except some that leave BOS to us.
  if (tokenizer.add_bos() && (ids.empty() || ids.front() != tokenizer.bos())) {
    ids.insert(ids.begin(), tokenizer.bos());
  }
  return ids;
}

bool EndsInsideThink(std::string_view prompt) {
  const size_t end = prompt.find_last_not_of(" \t\r\n");
  return end != std::string_view::npos && prompt.substr(0, end + 1).ends_with("<think>");
}

// How many leading ids of the prompt are in front of what the last user turn says: what the prompt
// has in common with that of the same chat with another last turn. 0: nothing, or not known.
int FindLastTurn(const ChatTemplate& chat_template, const Tokenizer& tokenizer,
                 const std::string& template_variables, const CompletionRequest::Prompt& prompt) {
  json variables = json::parse(template_variables);
  json& messages = variables["messages"];
  const auto last = std::find_if(messages.rbegin(), messages.rend(),
                                 [](const json& m) { return m.at("role") == "user"; });
  if (last == messages.rend() || std::next(last) == messages.rend()) return 0;
  const bool begins_with_x = last->at("content").get<std::string>().starts_with("x");
  (*last)["content"] = begins_with_x ? "y" : "x";
  const absl::StatusOr<std::string> other = chat_template.Render(variables.dump());
  if (!other.ok()) return 0;
  const auto parting =
      std::mismatch(other->begin(), other->end(), prompt.text.begin(), prompt.text.end());
  const std::vector<TokenId> common = EncodeChat(tokenizer, {other->begin(), parting.first});
  const auto end =
      std::mismatch(common.begin(), common.end(), prompt.ids.begin(), prompt.ids.end());
  return static_cast<int>(end.first - common.begin());
}

absl::Status RenderChat(const Deployment& deployment, PreparedCompletion* prepared) {
  const ChatTemplate* chat_template = deployment.chat_template();
  if (chat_template == nullptr) {
    return FieldError("messages",
                      absl::StrCat("the model \"", deployment.info().name,
                                   "\" has no chat template; use /v1/completions"),
                      "no_chat_template");
  }
  CompletionRequest& request = prepared->request;
  absl::StatusOr<std::string> text = chat_template->Render(request.template_variables);
  if (!text.ok()) return TemplateStatus(text.status());
  prepared->starts_in_reasoning = EndsInsideThink(*text);
  const Tokenizer& tokenizer = deployment.tokenizer();
  CompletionRequest::Prompt prompt{.text = *std::move(text)};
  prompt.ids = EncodeChat(tokenizer, prompt.text);
  if (deployment.info().recurrent) {
    prompt.last_turn_start =
        FindLastTurn(*chat_template, tokenizer, request.template_variables, prompt);
  }
  request.template_variables.clear();
  request.prompts.push_back(std::move(prompt));
  return absl::OkStatus();
}

absl::Status EncodePrompts(const Deployment& deployment, CompletionRequest* request) {
  const char* field = request->kind == CompletionKind::kChat ? "messages" : "prompt";
  const int context = deployment.info().context_length;
  for (CompletionRequest::Prompt& prompt : request->prompts) {
    if (request->kind == CompletionKind::kText && !prompt.is_ids) {
      prompt.ids =
          deployment.tokenizer().Encode(prompt.text, {.add_special = true, .parse_special = true});
    }
    if (prompt.ids.empty()) {
      return FieldError(field, absl::StrCat(field, " has no tokens; at least one is needed"));
    }
    if (prompt.ids.size() >= static_cast<size_t>(context)) {
      return FieldError(
          field,
          absl::StrCat("the prompt has ", prompt.ids.size(), " tokens; the context holds ", context,
                       " tokens of prompt and output together"),
          "context_length_exceeded");
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<CompletionTarget> ParseTarget(std::string_view body,
                                             const DeploymentTable& deployments) {
  CompletionTarget target;
  ASSIGN_OR_RETURN(target.body, ParseBody(body));
  ASSIGN_OR_RETURN(const std::string model, ParseModel(target.body));
  ASSIGN_OR_RETURN(target.deployment, deployments.Find(model));
  return target;
}

absl::StatusOr<PreparedCompletion> PrepareCompletion(CompletionKind kind, CompletionTarget target) {
  RETURN_IF_ERROR(CheckServes(*target.deployment));
  PreparedCompletion prepared;
  prepared.deployment = target.deployment;
  ASSIGN_OR_RETURN(prepared.request, kind == CompletionKind::kChat
                                         ? ParseChatCompletion(target.body, *target.deployment)
                                         : ParseTextCompletion(target.body, *target.deployment));
  target.body = json();
  if (kind == CompletionKind::kChat) RETURN_IF_ERROR(RenderChat(*target.deployment, &prepared));
  RETURN_IF_ERROR(EncodePrompts(*target.deployment, &prepared.request));
  return prepared;
}

absl::StatusOr<std::string> Tokenize(std::string_view body, const DeploymentTable& deployments) {
  ASSIGN_OR_RETURN(const CompletionTarget target, ParseTarget(body, deployments));
  ASSIGN_OR_RETURN(const TokenizeRequest request, ParseTokenize(target.body));
  const std::vector<TokenId> ids = target.deployment->tokenizer().Encode(
      request.text, {.add_special = request.add_special, .parse_special = request.parse_special});
  return json({{"tokens", ids},
               {"count", ids.size()},
               {"max_model_len", target.deployment->info().context_length}})
      .dump();
}

absl::StatusOr<std::string> Detokenize(std::string_view body, const DeploymentTable& deployments) {
  ASSIGN_OR_RETURN(const CompletionTarget target, ParseTarget(body, deployments));
  const Tokenizer& tokenizer = target.deployment->tokenizer();
  ASSIGN_OR_RETURN(const std::vector<TokenId> ids, ParseDetokenize(target.body, tokenizer));
  const std::string text = tokenizer.Decode(ids, /*show_special=*/true);
  // Two servers, two names for the same text; clients of both are served.
  return json({{"content", text}, {"prompt", text}})
      .dump(-1, ' ', false, json::error_handler_t::replace);
}

}  // namespace packtrain

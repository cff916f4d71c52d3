#include "coordinator/api/chat_messages.h"

#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "coordinator/api/api_error.h"

namespace packtrain {
namespace {

using ::nlohmann::json;

absl::StatusOr<std::string> JoinParts(const JsonFields& message, const char* name,
                                      const json& parts) {
  std::string text;
  for (const json& part : parts) {
    const bool is_text = part.is_object() && part.contains("text") && part["text"].is_string() &&
                         part.value("type", json("text")) == json("text");
    if (!is_text) {
      return FieldError(message.Name(name),
                        absl::StrCat(message.Name(name),
                                     " may hold only parts of the form "
                                     "{\"type\": \"text\", \"text\": \"...\"}"));
    }
    if (!text.empty()) text += '\n';
    text += part["text"].get_ref<const std::string&>();
  }
  return text;
}

// Templates print arguments item by item, so they want the object, not its JSON text.
absl::Status ParseToolCalls(const JsonFields& message, json* calls) {
  if (!calls->is_array()) return message.Wrong("tool_calls", "an array");
  for (json& call : *calls) {
    if (!call.is_object()) return message.Wrong("tool_calls", "an array of objects");
    json& function = call.contains("function") ? call["function"] : call;
    if (!function.is_object() || !function.contains("name") || !function["name"].is_string()) {
      return FieldError(message.Name("tool_calls"),
                        absl::StrCat(message.Name("tool_calls"), " has a call without a name"));
    }
    json arguments = function.contains("arguments") ? function["arguments"] : json::object();
    if (arguments.is_string()) {
      arguments = ParseJson(arguments.get_ref<const std::string&>()).value_or(json());
    }
    if (!arguments.is_object()) {
      return FieldError(message.Name("tool_calls"),
                        absl::StrCat(message.Name("tool_calls"), ": the arguments of ",
                                     Excerpt(function["name"]), " must be a JSON object"));
    }
    function["arguments"] = std::move(arguments);
  }
  return absl::OkStatus();
}

absl::StatusOr<json> ParseMessage(const json& item, const std::string& prefix) {
  const JsonFields fields(item, prefix);
  json message = item;
  std::string role;
  RETURN_IF_ERROR(fields.Read("role", &role));
  if (role == "developer") role = "system";
  if (role != "system" && role != "user" && role != "assistant" && role != "tool") {
    return FieldError(
        fields.Name("role"),
        absl::StrCat(fields.Name("role"), " must be system, developer, user, assistant or tool"));
  }
  message["role"] = role;
  const json* content = fields.Find("content");
  if (content == nullptr) {
    if (role != "assistant") {
      return FieldError(fields.Name("content"), absl::StrCat(fields.Name("content"),
                                                             " is missing; it must be a string or "
                                                             "an array of text parts"));
    }
    message["content"] = "";
  } else if (content->is_array()) {
    ASSIGN_OR_RETURN(message["content"], JoinParts(fields, "content", *content));
  } else if (!content->is_string()) {
    return fields.Wrong("content", "a string or an array of text parts");
  }
  std::string reasoning;
  RETURN_IF_ERROR(fields.Read("reasoning", &reasoning));
  RETURN_IF_ERROR(fields.Read("reasoning_content", &reasoning));
  message.erase("reasoning");
  message.erase("reasoning_content");  // null would count as defined
  if (fields.Find("reasoning") != nullptr || fields.Find("reasoning_content") != nullptr) {
    message["reasoning_content"] = reasoning;
  }
  if (fields.Find("tool_calls") != nullptr) {
    RETURN_IF_ERROR(ParseToolCalls(fields, &message["tool_calls"]));
  } else {
    message.erase("tool_calls");
  }
  return message;
}

}  // namespace

absl::StatusOr<json> ParseMessages(const JsonFields& fields) {
  const json* messages = fields.Find("messages");
  if (messages == nullptr || !messages->is_array() || messages->empty()) {
    return FieldError("messages", "messages must be an array of at least one message");
  }
  json parsed = json::array();
  for (size_t i = 0; i < messages->size(); ++i) {
    const json& item = (*messages)[i];
    if (!item.is_object()) {
      return FieldError("messages",
                        absl::StrCat("messages[", i, "] must be an object, not ", Excerpt(item)));
    }
    ASSIGN_OR_RETURN(json message, ParseMessage(item, absl::StrCat("messages[", i, "].")));
    parsed.push_back(std::move(message));
  }
  return parsed;
}

}  // namespace packtrain

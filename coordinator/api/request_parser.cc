#include "coordinator/api/request_parser.h"

#include <algorithm>
#include <limits>
#include <nlohmann/json.hpp>
#include <random>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "coordinator/api/api_error.h"
#include "coordinator/api/chat_messages.h"
#include "coordinator/api/json_fields.h"

namespace packtrain {
namespace {

using ::nlohmann::json;

constexpr int kChoicesMax = 128;
constexpr int kTopLogprobsMax = 20;
constexpr int kStopStringsMax = 16;
constexpr size_t kStopBytesMax = 1024;
constexpr size_t kLogitBiasMax = 1024;
constexpr size_t kPromptsMax = 1024;
constexpr int kTextMaxTokensDefault = 16;
constexpr int kIntMax = std::numeric_limits<int>::max();

absl::Status ParseLogitBias(const JsonFields& fields, int vocab_size, SamplingParams* sampling) {
  const json* bias = fields.Find("logit_bias");
  if (bias == nullptr) return absl::OkStatus();
  if (!bias->is_object() || bias->size() > kLogitBiasMax) {
    return fields.Wrong("logit_bias", absl::StrCat("an object of at most ", kLogitBiasMax,
                                                   " pairs of token id and number"));
  }
  for (const auto& [key, value] : bias->items()) {
    int id = 0;
    const double number = value.is_number() ? value.get<double>() : 1e9;
    if (!absl::SimpleAtoi(key, &id) || id < 0 || id >= vocab_size || !(number >= -100) ||
        !(number <= 100)) {
      return FieldError("logit_bias",
                        absl::StrCat("logit_bias maps token ids from 0 to ", vocab_size - 1,
                                     " to numbers from -100 to 100, not \"", key.substr(0, 40),
                                     "\" to ", Excerpt(value)));
    }
    sampling->logit_bias.push_back({id, static_cast<float>(number)});
  }
  // "7" and "07" are the same id.
  std::sort(sampling->logit_bias.begin(), sampling->logit_bias.end(),
            [](const LogitBias& a, const LogitBias& b) { return a.token_id < b.token_id; });
  const auto same = [](const LogitBias& a, const LogitBias& b) { return a.token_id == b.token_id; };
  if (std::adjacent_find(sampling->logit_bias.begin(), sampling->logit_bias.end(), same) !=
      sampling->logit_bias.end()) {
    return FieldError("logit_bias", "logit_bias names a token id twice");
  }
  return absl::OkStatus();
}

absl::Status ParseSampling(const JsonFields& fields, int vocab_size, SamplingParams* sampling) {
  RETURN_IF_ERROR(fields.Read("temperature", 0, 2, false, &sampling->temperature));
  int top_k = 0;
  RETURN_IF_ERROR(fields.Read("top_k", -1, kIntMax, &top_k));
  sampling->top_k = std::max(top_k, 0);
  RETURN_IF_ERROR(fields.Read("top_p", 0, 1, true, &sampling->top_p));
  RETURN_IF_ERROR(fields.Read("min_p", 0, 1, false, &sampling->min_p));
  RETURN_IF_ERROR(fields.Read("repeat_penalty", 0, 2, true, &sampling->repetition_penalty));
  RETURN_IF_ERROR(fields.Read("repetition_penalty", 0, 2, true, &sampling->repetition_penalty));
  RETURN_IF_ERROR(fields.Read("repeat_last_n", -1, kIntMax, &sampling->repeat_last_n));
  RETURN_IF_ERROR(fields.Read("presence_penalty", -2, 2, false, &sampling->presence_penalty));
  RETURN_IF_ERROR(fields.Read("frequency_penalty", -2, 2, false, &sampling->frequency_penalty));
  auto seed =
      static_cast<int64_t>((uint64_t{std::random_device()()} << 32) | std::random_device()());
  RETURN_IF_ERROR(fields.Read("seed", std::numeric_limits<int64_t>::min(),
                              std::numeric_limits<int64_t>::max(), &seed));
  sampling->seed = static_cast<uint64_t>(seed);
  return ParseLogitBias(fields, vocab_size, sampling);
}

absl::Status ParseStop(const JsonFields& fields, std::vector<std::string>* stop) {
  const json* field = fields.Find("stop");
  if (field == nullptr) return absl::OkStatus();
  const json list = field->is_string() ? json::array({*field}) : *field;
  const auto is_good = [](const json& item) {
    return item.is_string() && !item.get_ref<const std::string&>().empty() &&
           item.get_ref<const std::string&>().size() <= kStopBytesMax;
  };
  if (!list.is_array() || list.size() > kStopStringsMax ||
      !std::all_of(list.begin(), list.end(), is_good)) {
    return fields.Wrong("stop", absl::StrCat("a string or an array of at most ", kStopStringsMax,
                                             " strings of 1 to ", kStopBytesMax, " bytes"));
  }
  *stop = list.get<std::vector<std::string>>();
  return absl::OkStatus();
}

absl::Status ParseCommon(const JsonFields& fields, const Deployment& deployment,
                         CompletionRequest* request) {
  RETURN_IF_ERROR(ParseSampling(fields, deployment.tokenizer().vocab_size(), &request->sampling));
  RETURN_IF_ERROR(ParseStop(fields, &request->stop));
  RETURN_IF_ERROR(fields.Read("n", 1, kChoicesMax, &request->n));
  RETURN_IF_ERROR(fields.Read("stream", &request->stream));
  RETURN_IF_ERROR(fields.Read("ignore_eos", &request->ignore_eos));
  RETURN_IF_ERROR(fields.Read("return_token_ids", &request->return_token_ids));
  const int least = request->kind == CompletionKind::kText ? 0 : 1;
  for (const char* name : {"max_tokens", "max_completion_tokens"}) {
    if (fields.Find(name) == nullptr) continue;
    request->max_tokens.emplace(0);
    RETURN_IF_ERROR(fields.Read(name, least, kIntMax, &*request->max_tokens));
  }
  if (const json* options = fields.Find("stream_options"); options != nullptr) {
    if (!options->is_object()) return fields.Wrong("stream_options", "an object");
    RETURN_IF_ERROR(
        JsonFields(*options, "stream_options.").Read("include_usage", &request->include_usage));
  }
  if (const json* format = fields.Find("response_format"); format != nullptr) {
    if (!format->is_object() || format->value("type", json()) != json("text")) {
      return FieldError("response_format", "response_format must be {\"type\": \"text\"}");
    }
  }
  return absl::OkStatus();
}

// reasoning_effort "none" switches thinking off, any other on; chat_template_kwargs goes first.
absl::Status ParseThinking(const JsonFields& fields, const Deployment& deployment,
                           CompletionRequest* request, json* variables) {
  std::string effort;
  RETURN_IF_ERROR(fields.Read("reasoning_effort", &effort));
  if (!effort.empty()) {
    request->thinking = effort != "none";
    if (effort != "none") (*variables)["reasoning_effort"] = effort;
  }
  if (const json* kwargs = fields.Find("chat_template_kwargs"); kwargs != nullptr) {
    if (!kwargs->is_object()) return fields.Wrong("chat_template_kwargs", "an object");
    for (const char* name : {"thinking", "enable_thinking"}) {
      const JsonFields inner(*kwargs, "chat_template_kwargs.");
      if (inner.Find(name) == nullptr) continue;
      request->thinking.emplace();
      RETURN_IF_ERROR(inner.Read(name, &*request->thinking));
    }
    variables->update(*kwargs);
  }
  const bool thinking = request->thinking.value_or(deployment.info().thinking);
  (*variables)["enable_thinking"] = thinking;
  (*variables)["thinking"] = thinking;  // DeepSeek's templates
  return absl::OkStatus();
}

absl::Status ParseTools(const JsonFields& fields, json* variables) {
  const json* tools = fields.Find("tools");
  const json* choice = fields.Find("tool_choice");
  if (choice != nullptr && *choice != json("auto") && *choice != json("none")) {
    return fields.Wrong("tool_choice", "\"auto\" or \"none\"");
  }
  if (tools == nullptr) return absl::OkStatus();
  const auto is_tool = [](const json& tool) { return tool.is_object(); };
  if (!tools->is_array() || !std::all_of(tools->begin(), tools->end(), is_tool)) {
    return fields.Wrong("tools", "an array of objects");
  }
  if (!tools->empty() && (choice == nullptr || *choice == json("auto"))) {
    (*variables)["tools"] = *tools;
  }
  return absl::OkStatus();
}

bool IsIdList(const json& value) {
  return value.is_array() && !value.empty() &&
         std::all_of(value.begin(), value.end(),
                     [](const json& item) { return item.is_number_integer(); });
}

absl::StatusOr<std::vector<TokenId>> ParseIds(const char* name, const json& list, int vocab_size) {
  std::vector<TokenId> ids;
  ids.reserve(list.size());
  for (const json& item : list) {
    const bool is_small =
        item.is_number_integer() && item.get<int64_t>() >= 0 && item.get<int64_t>() < vocab_size;
    if (!is_small) {
      return FieldError(name, absl::StrCat(name, " holds ", Excerpt(item),
                                           "; token ids go from 0 to ", vocab_size - 1));
    }
    ids.push_back(item.get<TokenId>());
  }
  return ids;
}

absl::Status ParsePrompts(const JsonFields& fields, int vocab_size, CompletionRequest* request) {
  constexpr char kAllowed[] =
      "a string, an array of strings, an array of token ids or an array of such arrays";
  const json* prompt = fields.Find("prompt");
  if (prompt == nullptr)
    return FieldError("prompt",
                      "prompt is missing; it must be a string, an "
                      "array of strings or of token ids");
  const bool single = prompt->is_string() || IsIdList(*prompt);
  const json list = single ? json::array({*prompt}) : *prompt;
  if (!list.is_array() || list.empty() || list.size() > kPromptsMax) {
    return fields.Wrong("prompt", kAllowed);
  }
  for (const json& item : list) {
    CompletionRequest::Prompt one;
    if (item.is_string()) {
      one.text = item.get<std::string>();
    } else if (IsIdList(item)) {
      one.is_ids = true;
      ASSIGN_OR_RETURN(one.ids, ParseIds("prompt", item, vocab_size));
    } else {
      return fields.Wrong("prompt", kAllowed);
    }
    request->prompts.push_back(std::move(one));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<json> ParseBody(std::string_view body) {
  absl::StatusOr<json> value = ParseJson(body);
  if (!value.ok()) {
    return absl::InvalidArgumentError(absl::StrCat("the body is ", value.status().message()));
  }
  if (!value->is_object()) {
    return absl::InvalidArgumentError(
        absl::StrCat("the body must be a JSON object, not ", Excerpt(*value)));
  }
  return value;
}

absl::StatusOr<std::string> ParseModel(const json& body) {
  std::string model;
  RETURN_IF_ERROR(JsonFields(body).Read("model", &model));
  return model;
}

absl::StatusOr<CompletionRequest> ParseChatCompletion(const json& body,
                                                      const Deployment& deployment) {
  const JsonFields fields(body);
  CompletionRequest request;
  request.kind = CompletionKind::kChat;
  RETURN_IF_ERROR(ParseCommon(fields, deployment, &request));
  RETURN_IF_ERROR(fields.Read("logprobs", &request.logprobs));
  RETURN_IF_ERROR(fields.Read("top_logprobs", 0, kTopLogprobsMax, &request.top_logprobs));
  if (request.top_logprobs > 0 && !request.logprobs) {
    return FieldError("top_logprobs", "top_logprobs needs logprobs to be true");
  }
  json variables = json::object();
  RETURN_IF_ERROR(ParseThinking(fields, deployment, &request, &variables));
  RETURN_IF_ERROR(ParseTools(fields, &variables));
  ASSIGN_OR_RETURN(variables["messages"], ParseMessages(fields));
  bool add_generation_prompt = true;
  RETURN_IF_ERROR(fields.Read("add_generation_prompt", &add_generation_prompt));
  variables["add_generation_prompt"] = add_generation_prompt;
  request.template_variables = variables.dump();
  return request;
}

absl::StatusOr<CompletionRequest> ParseTextCompletion(const json& body,
                                                      const Deployment& deployment) {
  const JsonFields fields(body);
  CompletionRequest request;
  request.kind = CompletionKind::kText;
  RETURN_IF_ERROR(ParseCommon(fields, deployment, &request));
  if (fields.Find("logprobs") != nullptr) {
    request.logprobs = true;
    RETURN_IF_ERROR(fields.Read("logprobs", 0, kTopLogprobsMax, &request.top_logprobs));
  }
  RETURN_IF_ERROR(fields.Read("echo", &request.echo));
  if (!request.max_tokens.has_value()) request.max_tokens = kTextMaxTokensDefault;
  if (const json* suffix = fields.Find("suffix"); suffix != nullptr && *suffix != json("")) {
    return FieldError("suffix", "suffix is not supported; leave it out");
  }
  RETURN_IF_ERROR(ParsePrompts(fields, deployment.tokenizer().vocab_size(), &request));
  if (request.prompts.size() * static_cast<size_t>(request.n) > kPromptsMax) {
    return FieldError("n", absl::StrCat("prompts times n must be at most ", kPromptsMax));
  }
  return request;
}

absl::StatusOr<TokenizeRequest> ParseTokenize(const json& body) {
  const JsonFields fields(body);
  TokenizeRequest request;
  if (fields.Find("content") == nullptr && fields.Find("prompt") == nullptr) {
    return FieldError("content", "content is missing; it must be the string to tokenize");
  }
  RETURN_IF_ERROR(fields.Read("prompt", &request.text));
  RETURN_IF_ERROR(fields.Read("content", &request.text));
  RETURN_IF_ERROR(fields.Read("add_special_tokens", &request.add_special));
  RETURN_IF_ERROR(fields.Read("add_special", &request.add_special));
  RETURN_IF_ERROR(fields.Read("parse_special", &request.parse_special));
  return request;
}

absl::StatusOr<std::vector<TokenId>> ParseDetokenize(const json& body, const Tokenizer& tokenizer) {
  const JsonFields fields(body);
  const json* tokens = fields.Find("tokens");
  if (tokens == nullptr || !tokens->is_array()) {
    return FieldError("tokens", "tokens must be an array of token ids");
  }
  return ParseIds("tokens", *tokens, tokenizer.vocab_size());
}

}  // namespace packtrain

#include "coordinator/api/completion_json.h"

#include <chrono>
#include <cmath>
#include <nlohmann/json.hpp>
#include <random>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace packtrain {
namespace {

using ::nlohmann::json;

std::string Dump(const json& value) {
  return value.dump(-1, ' ', false, json::error_handler_t::replace);
}

json NullIfEmpty(const std::string& text) { return text.empty() ? json() : json(text); }

int64_t CharacterCount(std::string_view text) {
  int64_t count = 0;
  for (const char c : text) count += (static_cast<unsigned char>(c) & 0xC0) != 0x80;
  return count;
}

// JSON has no infinity; clients treat this value as one.
double Finite(float logprob) { return std::isfinite(logprob) ? double{logprob} : -9999.0; }

json UsageJson(const CompletionUsage& usage) {
  return {{"prompt_tokens", usage.prompt_tokens},
          {"completion_tokens", usage.completion_tokens},
          {"total_tokens", usage.prompt_tokens + usage.completion_tokens},
          {"prompt_tokens_details", {{"cached_tokens", usage.cached_tokens}}},
          {"completion_tokens_details", {{"reasoning_tokens", usage.reasoning_tokens}}}};
}

json TimingsJson(const CompletionTimings& timings) {
  const auto rate = [](int count, double ms) { return ms > 0 ? count * 1000.0 / ms : 0.0; };
  return {{"queued_ms", timings.queued_ms},
          {"cache_n", timings.cached_tokens},
          {"prompt_n", timings.prompt_evaluated},
          {"prompt_ms", timings.prompt_ms},
          {"prompt_per_second", rate(timings.prompt_evaluated, timings.prompt_ms)},
          {"predicted_n", timings.decoded},
          {"predicted_ms", timings.decode_ms},
          {"predicted_per_second", rate(timings.decode_steps, timings.decode_ms)}};
}

std::string NewId(CompletionKind kind) {
  std::random_device random;
  return absl::StrFormat("%s-%08x%08x%08x", kind == CompletionKind::kChat ? "chatcmpl" : "cmpl",
                         random(), random(), random());
}

}  // namespace

CompletionJson::CompletionJson(const CompletionRequest& request, const Tokenizer& tokenizer,
                               std::string model)
    : request_(request),
      tokenizer_(tokenizer),
      model_(std::move(model)),
      id_(NewId(request.kind)),
      created_(std::chrono::duration_cast<std::chrono::seconds>(
                   std::chrono::system_clock::now().time_since_epoch())
                   .count()),
      text_offsets_(request.prompts.size() * static_cast<size_t>(request.n)),
      whole_choices_(text_offsets_.size()) {}

json CompletionJson::Envelope(bool chunk) const {
  const char* object = request_.kind == CompletionKind::kText ? "text_completion"
                       : chunk                                ? "chat.completion.chunk"
                                                              : "chat.completion";
  return {{"id", id_}, {"object", object}, {"created", created_}, {"model", model_}};
}

std::string CompletionJson::PieceText(TokenId id) const {
  return std::string(tokenizer_.Piece(id, /*show_special=*/true));
}

json CompletionJson::ChatLogprobs(const std::vector<TokenEvent>& tokens) const {
  const auto entry = [this](TokenId id, float logprob) {
    const std::string piece = PieceText(id);
    json bytes = json::array();
    for (const char c : piece) bytes.push_back(static_cast<unsigned char>(c));
    return json{{"token", piece}, {"logprob", Finite(logprob)}, {"bytes", bytes}};
  };
  json content = json::array();
  for (const TokenEvent& token : tokens) {
    json one = entry(token.id, token.logprob);
    one["top_logprobs"] = json::array();
    for (const auto& [id, logprob] : token.top) one["top_logprobs"].push_back(entry(id, logprob));
    content.push_back(std::move(one));
  }
  return {{"content", std::move(content)}, {"refusal", nullptr}};
}

json CompletionJson::TextLogprobs(int index, const std::vector<TokenEvent>& tokens) {
  json out = {{"tokens", json::array()},
              {"token_logprobs", json::array()},
              {"top_logprobs", json::array()},
              {"text_offset", json::array()}};
  int64_t& offset = text_offsets_[static_cast<size_t>(index)];
  for (const TokenEvent& token : tokens) {
    const std::string piece = PieceText(token.id);
    // Only the first token of an echoed prompt has no probability.
    const bool unknown = request_.echo && offset == 0 && token.logprob == 0 && token.top.empty();
    json top = json::object();
    for (const auto& [id, logprob] : token.top) {
      // Different tokens may print alike after repair; the most likely stays.
      top.emplace(PieceText(id), Finite(logprob));
    }
    out["tokens"].push_back(piece);
    out["token_logprobs"].push_back(unknown ? json() : json(Finite(token.logprob)));
    out["top_logprobs"].push_back(unknown ? json() : std::move(top));
    out["text_offset"].push_back(offset);
    offset += CharacterCount(piece);
  }
  return out;
}

std::string CompletionJson::FirstChunk(int index, const std::vector<TokenId>& prompt_ids) const {
  json body = Envelope(/*chunk=*/true);
  body["choices"] = json::array({{{"index", index},
                                  {"delta", {{"role", "assistant"}, {"content", ""}}},
                                  {"logprobs", nullptr},
                                  {"finish_reason", nullptr}}});
  if (request_.return_token_ids) body["prompt_token_ids"] = prompt_ids;
  return Dump(body);
}

std::string CompletionJson::Chunk(int index, const ChoiceDelta& delta,
                                  const std::string& finish_reason,
                                  const std::vector<TokenId>* prompt_ids,
                                  const CompletionTimings* timings) {
  json choice = {{"index", index}, {"finish_reason", NullIfEmpty(finish_reason)}};
  const bool has_logprobs = request_.logprobs && !delta.logprobs.empty();
  if (request_.kind == CompletionKind::kChat) {
    json text = json::object();
    if (!delta.reasoning.empty()) text["reasoning_content"] = delta.reasoning;
    if (!delta.content.empty()) text["content"] = delta.content;
    choice["delta"] = std::move(text);
    choice["logprobs"] = has_logprobs ? ChatLogprobs(delta.logprobs) : json();
  } else {
    choice["text"] = delta.content;
    choice["logprobs"] = has_logprobs ? TextLogprobs(index, delta.logprobs) : json();
    if (prompt_ids != nullptr) choice["prompt_token_ids"] = *prompt_ids;
  }
  if (request_.return_token_ids) choice["token_ids"] = delta.token_ids;
  json body = Envelope(/*chunk=*/true);
  body["choices"] = json::array({std::move(choice)});
  if (timings != nullptr) body["timings"] = TimingsJson(*timings);
  return Dump(body);
}

std::string CompletionJson::UsageChunk(const CompletionUsage& usage,
                                       const CompletionTimings& timings) const {
  json body = Envelope(/*chunk=*/true);
  body["choices"] = json::array();
  body["usage"] = UsageJson(usage);
  body["timings"] = TimingsJson(timings);
  return Dump(body);
}

void CompletionJson::AddChoice(int index, const ChoiceDelta& all, const std::string& finish_reason,
                               const std::vector<TokenId>& prompt_ids) {
  json choice = {{"index", index}, {"finish_reason", finish_reason}};
  if (request_.kind == CompletionKind::kChat) {
    json message = {{"role", "assistant"}, {"content", all.content}, {"refusal", nullptr}};
    if (!all.reasoning.empty()) message["reasoning_content"] = all.reasoning;
    choice["message"] = std::move(message);
    choice["logprobs"] = request_.logprobs ? ChatLogprobs(all.logprobs) : json();
    chat_prompt_ids_ = prompt_ids;
  } else {
    choice["text"] = all.content;
    choice["logprobs"] = request_.logprobs ? TextLogprobs(index, all.logprobs) : json();
    if (request_.return_token_ids) choice["prompt_token_ids"] = prompt_ids;
  }
  if (request_.return_token_ids) choice["token_ids"] = all.token_ids;
  whole_choices_[static_cast<size_t>(index)] = Dump(choice);
}

std::string CompletionJson::Whole(const CompletionUsage& usage, const CompletionTimings& timings) {
  json body = Envelope(/*chunk=*/false);
  body["usage"] = UsageJson(usage);
  body["timings"] = TimingsJson(timings);
  if (request_.return_token_ids && request_.kind == CompletionKind::kChat) {
    body["prompt_token_ids"] = chat_prompt_ids_;
  }
  std::string text = Dump(body);
  text.pop_back();
  text += ",\"choices\":[";
  for (size_t i = 0; i < whole_choices_.size(); ++i) {
    absl::StrAppend(&text, i == 0 ? "" : ",", whole_choices_[i]);
  }
  return text + "]}";
}

}  // namespace packtrain

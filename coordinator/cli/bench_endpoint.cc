#include "coordinator/cli/bench_endpoint.h"

#include <nlohmann/json.hpp>
#include <string_view>
#include <thread>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"
#include "common/base/status_macros.h"
#include "common/config/topology.h"

namespace packtrain {
namespace {

using Clock = std::chrono::steady_clock;
using Json = nlohmann::json;

// Notes when the tokens of a stream of server-sent events come.
class TokenClock {
 public:
  explicit TokenClock(int tokens) { times_.reserve(static_cast<size_t>(tokens)); }

  bool Add(std::string_view bytes) {
    const Clock::time_point now = Clock::now();
    text_ += bytes;
    for (size_t end; (end = text_.find('\n', read_)) != std::string::npos; read_ = end + 1) {
      absl::string_view line = absl::string_view(text_).substr(read_, end - read_);
      if (absl::ConsumePrefix(&line, "data: "))
        Event(std::string_view(line.data(), line.size()), now);
    }
    return true;
  }

  absl::StatusOr<TokenTimes> Finish(int status) const {
    if (status != 200) return absl::InvalidArgumentError(absl::StrCat("refused: ", text_));
    RETURN_IF_ERROR(status_);
    if (times_.empty()) return absl::InternalError("a request ended without a token");
    return times_;
  }

 private:
  void Event(std::string_view data, Clock::time_point now) {
    const Json event = Json::parse(data, nullptr, false);
    if (!event.is_object()) return;  // "[DONE]"
    if (event.contains("error")) status_ = absl::InternalError(event["error"].dump());
    if (event.contains("timings") && event["timings"].value("cache_n", 0) > 0) {
      status_ = absl::InternalError("a prompt of random ids was in the cache");
    }
    if (!event.contains("choices") || !event["choices"].is_array()) return;
    for (const Json& choice : event["choices"]) {
      // Engines that do not tell ids send a token at a time.
      const size_t tokens = choice.contains("token_ids") ? choice["token_ids"].size()
                            : choice.value("text", std::string()).empty() ? 0
                                                                          : 1;
      times_.insert(times_.end(), tokens, now);
    }
  }

  std::string text_;
  size_t read_ = 0;
  TokenTimes times_;
  absl::Status status_;
};

}  // namespace

EndpointTarget::EndpointTarget(std::string url, std::string model, std::string api_key)
    : url_(std::move(url)), model_(std::move(model)) {
  request_.bearer = std::move(api_key);
}

absl::Status EndpointTarget::Open() {
  absl::string_view address = url_;
  absl::ConsumePrefix(&address, "http://");
  absl::ConsumeSuffix(&address, "/");
  RETURN_IF_ERROR(ParseAddress(std::string(address), &request_.host, &request_.port));
  ASSIGN_OR_RETURN(const std::string text, Get("/v1/models"));
  const Json models = Json::parse(text, nullptr, false);
  if (!models.is_object() || !models.contains("data") || !models["data"].is_array()) {
    return absl::InvalidArgumentError(absl::StrCat(url_, "/v1/models is no list of models"));
  }
  std::vector<std::string> names;
  for (const Json& model : models["data"]) {
    names.push_back(model.value("id", ""));
    if (!model_.empty() && model_ != names.back()) continue;
    model_ = names.back();
    context_ = model.value("context_length", 0);
    vocab_size_ = model.value("vocab_size", vocab_size_);
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(absl::StrCat("no model is called \"", model_, "\" at ", url_,
                                                 "; there are: ", absl::StrJoin(names, ", ")));
}

Json EndpointTarget::plan() {
  const absl::StatusOr<std::string> text = Get("/plan");
  const Json plan = text.ok() ? Json::parse(*text, nullptr, false) : Json();
  if (!plan.is_object() || !plan.contains("deployments")) return nullptr;
  for (const Json& deployment : plan["deployments"]) {
    if (deployment.value("name", "") == model_) return deployment;
  }
  return nullptr;
}

absl::StatusOr<std::vector<TokenTimes>> EndpointTarget::Run(
    std::vector<std::vector<TokenId>> prompts, int tokens) {
  std::vector<absl::StatusOr<TokenTimes>> results(prompts.size());
  {
    std::vector<std::jthread> streams;
    for (size_t i = 0; i < prompts.size(); ++i) {
      streams.emplace_back([&, i] { results[i] = Stream(prompts[i], tokens); });
    }
  }
  std::vector<TokenTimes> times;
  for (absl::StatusOr<TokenTimes>& result : results) {
    RETURN_IF_ERROR(result.status());
    times.push_back(*std::move(result));
  }
  return times;
}

absl::StatusOr<TokenTimes> EndpointTarget::Stream(const std::vector<TokenId>& prompt,
                                                  int tokens) const {
  HttpRequest request = request_;
  request.path = "/v1/completions";
  request.body = Json{{"model", model_},  {"prompt", prompt},   {"max_tokens", tokens},
                      {"temperature", 0}, {"ignore_eos", true}, {"return_token_ids", true},
                      {"stream", true}}
                     .dump();
  TokenClock clock(tokens);
  ASSIGN_OR_RETURN(const int status,
                   Send(request, [&](std::string_view bytes) { return clock.Add(bytes); }));
  return clock.Finish(status);
}

StepTimes EndpointTarget::decode_step() {
  StepTimes step;
  const absl::StatusOr<std::string> text = Get("/metrics");
  if (!text.ok()) return step;
  const std::string label = absl::StrCat("model=\"", model_, "\"");
  for (absl::string_view line : absl::StrSplit(*text, '\n')) {
    float value = 0;
    const size_t space = line.rfind(' ');
    if (space == absl::string_view::npos || !absl::StrContains(line, label) ||
        !absl::SimpleAtof(line.substr(space + 1), &value)) {
      continue;
    }
    if (absl::StartsWith(line, "packtrain_decode_experts_read{")) step.experts_read = value;
    if (absl::StartsWith(line, "packtrain_decode_gpu_operations{")) step.gpu_operations = value;
    if (!absl::StartsWith(line, "packtrain_decode_step_seconds{")) continue;
    step.interval += value * 1e6F;
    if (absl::StrContains(line, "part=\"experts\"")) step.experts = value * 1e6F;
    if (absl::StrContains(line, "part=\"compute\"")) step.compute = value * 1e6F;
    if (absl::StrContains(line, "part=\"control\"")) step.control = value * 1e6F;
  }
  return step;
}

absl::StatusOr<std::string> EndpointTarget::Get(const std::string& path) {
  HttpRequest request = request_;
  request.path = path;
  std::string body;
  ASSIGN_OR_RETURN(const int status, Send(request, [&](std::string_view bytes) {
                     body += bytes;
                     return true;
                   }));
  if (status != 200) return absl::NotFoundError(absl::StrCat(path, ": HTTP ", status));
  return body;
}

}  // namespace packtrain

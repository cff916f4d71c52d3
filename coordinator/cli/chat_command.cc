#include "coordinator/cli/chat_command.h"

#include <unistd.h>

#include <cstdio>
#include <iostream>
#include <nlohmann/json.hpp>
#include <string_view>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "common/config/topology.h"
#include "coordinator/cli/http_client.h"

namespace packtrain {
namespace {

using Json = nlohmann::json;

// Prints the deltas of a stream of server-sent events as they come.
class AnswerPrinter {
 public:
  explicit AnswerPrinter(bool colour) : colour_(colour) {}

  bool Add(std::string_view bytes) {
    all_ += bytes;
    for (size_t end; (end = all_.find('\n', read_)) != std::string::npos; read_ = end + 1) {
      std::string_view line(all_.data() + read_, end - read_);
      if (line.ends_with('\r')) line.remove_suffix(1);
      if (line.starts_with("data: ")) Event(line.substr(6));
    }
    std::fflush(stdout);
    return true;
  }
  // The endpoint's own words for what it refused, else the whole body.
  std::string Error() const {
    const Json body = Json::parse(all_, nullptr, false);
    if (body.is_object() && body.contains("error") && body["error"].is_object()) {
      return body["error"].value("message", all_);
    }
    return stream_error_.empty() ? all_ : stream_error_;
  }
  bool failed() const { return !stream_error_.empty(); }
  void Finish() {
    Thinking(false);
    std::printf("\n");
  }
  const std::string& content() const { return content_; }

 private:
  void Event(std::string_view data) {
    const Json event = Json::parse(data, nullptr, false);
    if (!event.is_object()) return;  // "[DONE]"
    if (event.contains("error") && event["error"].is_object()) {
      stream_error_ = event["error"].value("message", "the stream failed");
      return;
    }
    const auto choices = event.find("choices");
    if (choices == event.end() || !choices->is_array() || choices->empty()) return;
    const Json delta = (*choices)[0].value("delta", Json::object());
    Show(delta, "reasoning_content", true);
    Show(delta, "content", false);
  }
  void Show(const Json& delta, const char* field, bool thinking) {
    const auto text = delta.find(field);
    if (text == delta.end() || !text->is_string()) return;
    const std::string& piece = text->get_ref<const std::string&>();
    if (piece.empty()) return;
    Thinking(thinking);
    std::fwrite(piece.data(), 1, piece.size(), stdout);
    if (!thinking) content_ += piece;
  }
  void Thinking(bool on) {
    if (on == thinking_) return;
    thinking_ = on;
    if (colour_) std::fputs(on ? "\x1b[2m" : "\x1b[0m", stdout);
    if (!on) std::fputs("\n\n", stdout);
  }

  const bool colour_;
  bool thinking_ = false;
  std::string all_;
  size_t read_ = 0;
  std::string content_;
  std::string stream_error_;
};

absl::Status Turn(const ChatOptions& options, HttpRequest* post, Json* messages) {
  Json body = {{"messages", *messages}, {"stream", true}};
  if (!options.model.empty()) body["model"] = options.model;
  if (options.max_tokens > 0) body["max_tokens"] = options.max_tokens;
  if (options.thinking) body["chat_template_kwargs"] = {{"enable_thinking", true}};
  post->body = body.dump(-1, ' ', false, Json::error_handler_t::replace);
  AnswerPrinter printer(isatty(STDOUT_FILENO) == 1);
  ASSIGN_OR_RETURN(const int status,
                   Send(*post, [&](std::string_view bytes) { return printer.Add(bytes); }));
  if (status != 200 || printer.failed()) return absl::InvalidArgumentError(printer.Error());
  printer.Finish();
  messages->push_back({{"role", "assistant"}, {"content", printer.content()}});
  return absl::OkStatus();
}

}  // namespace

absl::Status RunChat(const ChatOptions& options) {
  HttpRequest post;
  RETURN_IF_ERROR(ParseAddress(options.endpoint, &post.host, &post.port));
  post.path = "/v1/chat/completions";
  post.bearer = options.api_key;
  Json messages = Json::array();
  if (!options.system.empty())
    messages.push_back({{"role", "system"}, {"content", options.system}});
  const bool interactive = options.message.empty() && isatty(STDIN_FILENO) == 1;
  for (std::string line = options.message;;) {
    if (options.message.empty()) {
      if (interactive) std::fputs("> ", stdout);
      std::fflush(stdout);
      if (!std::getline(std::cin, line)) return absl::OkStatus();
      if (line.empty()) continue;
    }
    messages.push_back({{"role", "user"}, {"content", line}});
    RETURN_IF_ERROR(Turn(options, &post, &messages));
    if (!options.message.empty()) return absl::OkStatus();
  }
}

}  // namespace packtrain

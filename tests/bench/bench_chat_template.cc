// Rendering of chats of 64 KB through the warm child process, with the templates of
// tests/golden/chat. The floor is a template that only prints one text of as many bytes: the socket
// both ways, and JSON parsed. Results are checked before anything is timed: every recorded case,
// and in the long chats every message in its place.

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/base/check.h"
#include "coordinator/tokenizer/chat_template.h"
#include "coordinator/tokenizer/chat_template_host.h"

namespace packtrain {
namespace {

using ::nlohmann::json;
using Clock = std::chrono::steady_clock;

constexpr size_t kChatBytes = 64 << 10;
constexpr int kRuns = 200;

// Distinct texts, a few characters of each beyond ASCII, so that none is found in another's place.
json Chat(size_t messages) {
  json list = json::array();
  for (size_t i = 0; i < messages; ++i) {
    std::string text = absl::StrFormat("%d \"größer\"\n", i);
    while (text.size() < kChatBytes / messages) absl::StrAppend(&text, "word ", text.size(), " ");
    text += '.';
    list.push_back({{"role", i % 2 == 0 ? "user" : "assistant"}, {"content", std::move(text)}});
  }
  return {{"messages", std::move(list)}, {"add_generation_prompt", true}};
}

void CheckChat(const std::string& text, const json& chat) {
  size_t at = 0;
  for (const json& message : chat["messages"]) {
    const auto& content = message["content"].get_ref<const std::string&>();
    at = text.find(content, at);
    CHECK_MSG(at != std::string::npos, content.substr(0, 40));
    at += content.size();
  }
}

struct Times {
  double median_ms = 0;
  double p99_ms = 0;
};

Times Measure(const ChatTemplate& chat_template, const std::string& variables) {
  std::vector<double> ms;
  for (int i = 0; i < kRuns; ++i) {
    const Clock::time_point begin = Clock::now();
    CHECK(chat_template.Render(variables).ok());
    ms.push_back(std::chrono::duration<double, std::milli>(Clock::now() - begin).count());
  }
  std::sort(ms.begin(), ms.end());
  return {ms[ms.size() / 2], ms[ms.size() * 99 / 100]};
}

void Bench(const std::string& name, ChatTemplateHost* host) {
  std::ifstream in(std::string(PACKTRAIN_SOURCE_DIR) + "/tests/golden/chat/" + name + ".json");
  const json golden = json::parse(in);
  const ChatTemplate chat_template(golden["template"], golden["bos"], golden["eos"], host);
  for (const json& test_case : golden["cases"]) {
    const auto text = chat_template.Render(test_case["input"].dump());
    CHECK_MSG(text.ok(), std::string(text.status().message()));
    CHECK_MSG(*text == test_case["text"].get<std::string>(), test_case["name"].get<std::string>());
  }
  const ChatTemplate echo("{{ text }}", "", "", host);
  for (const size_t messages : {1UL, 64UL, 640UL}) {
    const json chat = Chat(messages);
    const std::string variables = chat.dump();
    const auto text = chat_template.Render(variables);
    CHECK_MSG(text.ok(), std::string(text.status().message()));
    CheckChat(*text, chat);
    const std::string plain = json({{"text", *text}}).dump();
    CHECK(echo.Render(plain).value() == *text);
    const Times floor = Measure(echo, plain);
    const Times times = Measure(chat_template, variables);
    std::printf(
        "%-14s %4zu messages, %zu bytes: median %5.2f ms  p99 %5.2f ms  floor %5.2f ms, share "
        "%3.0f %%\n",
        name.c_str(), messages, variables.size(), times.median_ms, times.p99_ms, floor.median_ms,
        100 * floor.median_ms / times.median_ms);
  }
}

}  // namespace
}  // namespace packtrain

int main() {
  const auto host = packtrain::ChatTemplateHost::Create();
  for (const char* name : {"glm", "qwen", "deepseek", "demo_primary", "demo_sidecar"}) {
    packtrain::Bench(name, host.get());
  }
  return 0;
}

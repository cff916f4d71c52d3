// Chat templates in the real child process: golden prompts, and templates that misbehave.

#include "coordinator/tokenizer/chat_template.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <chrono>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <vector>

#include "coordinator/tokenizer/chat_template_host.h"

namespace packtrain {
namespace {

using ::nlohmann::json;
using ::testing::HasSubstr;

json ReadGolden(const std::string& name) {
  std::ifstream in(std::string(PACKTRAIN_SOURCE_DIR) + "/tests/golden/chat/" + name + ".json");
  EXPECT_TRUE(in.good()) << name;
  return json::parse(in);
}

class ChatTemplateTest : public ::testing::Test {
 protected:
  absl::StatusOr<std::string> Render(const std::string& text, const std::string& variables = "{}") {
    return host_->Render(text, variables);
  }

  std::unique_ptr<ChatTemplateHost> host_ = ChatTemplateHost::Create();
};

class ChatTemplateGoldenTest : public ChatTemplateTest,
                               public ::testing::WithParamInterface<const char*> {};

TEST_P(ChatTemplateGoldenTest, RendersEveryConversationAsRecorded) {
  const json golden = ReadGolden(GetParam());
  const ChatTemplate chat_template(golden["template"], golden["bos"], golden["eos"], host_.get());
  ASSERT_GE(golden["cases"].size(), 4U);
  for (const json& test_case : golden["cases"]) {
    const absl::StatusOr<std::string> text = chat_template.Render(test_case["input"].dump());
    ASSERT_TRUE(text.ok()) << text.status();
    EXPECT_EQ(*text, test_case["text"].get<std::string>()) << test_case["name"];
  }
}

INSTANTIATE_TEST_SUITE_P(Models, ChatTemplateGoldenTest,
                         ::testing::Values("deepseek", "glm", "qwen", "demo_primary",
                                           "demo_sidecar"));

TEST_F(ChatTemplateTest, GivesTemplatesTheTokensOfTheModel) {
  const ChatTemplate chat_template("{{ bos_token }}|{{ eos_token }}|{{ x }}", "<s>", "</\"s>",
                                   host_.get());
  EXPECT_EQ(chat_template.Render(R"({"x": 1})").value(), "<s>|</\"s>|1");
  EXPECT_EQ(chat_template.Render("{}").value(), "<s>|</\"s>|");
  EXPECT_EQ(chat_template.Render(" {}").status().code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(ChatTemplateTest, FindsTheSwitchesOfATemplate) {
  const auto make = [&](const char* text) { return ChatTemplate(text, "", "", host_.get()); };
  EXPECT_TRUE(make("{% if enable_thinking %}x{% endif %}").SupportsThinkingSwitch());
  EXPECT_TRUE(make("{% if not thinking %}x{% endif %}").SupportsThinkingSwitch());
  EXPECT_FALSE(make("<think>{{ messages }}").SupportsThinkingSwitch());
  EXPECT_TRUE(make("{{ reasoning_effort }}").SupportsReasoningEffort());
  EXPECT_FALSE(make("{{ enable_thinking }}").SupportsReasoningEffort());
}

TEST_F(ChatTemplateTest, PrintsJsonAsModelsWereTrainedOnIt) {
  const std::string variables = R"({"v": {"a": ["<b>&'ü😀", 1.5, true, null], "c": {}}})";
  EXPECT_EQ(Render("{{ v | tojson }}", variables).value(),
            R"({"a": ["<b>&'ü😀", 1.5, true, null], "c": {}})");
  EXPECT_EQ(Render("{{ v.c | tojson(indent=2) }}{{ v | tojson(separators=(',', ':')) }}", variables)
                .value(),
            R"({}{"a":["<b>&'ü😀",1.5,true,null],"c":{}})");
}

TEST_F(ChatTemplateTest, KnowsWhatPublishedTemplatesUse) {
  EXPECT_EQ(Render("{% for i in range(9) %}{% if i == 1 %}{% continue %}{% endif %}"
                   "{% if i == 3 %}{% break %}{% endif %}{{ i }}{% endfor %}")
                .value(),
            "02");
  // A `set` inside a loop's body ends with the iteration.
  EXPECT_EQ(Render("{% set x = 'a' %}{% for i in range(2) %}{{ x }}{% set x = 'b' %}{{ x }}"
                   "{% endfor %}{{ x }}")
                .value(),
            "ababa");
  EXPECT_EQ(Render("{% set n = namespace(v=0) %}{% for m in v[::-1] %}{% set n.v = n.v + m %}"
                   "{{ loop.index0 }}{{ loop.first }}{{ loop.previtem is defined }}"
                   "{{ loop.last }}{% endfor %}{{ n.v }}",
                   R"({"v": [1, 2]})")
                .value(),
            "0TrueFalseFalse1FalseTrueTrue3");
  EXPECT_EQ(Render("{% macro f(x) %}[{{ x | trim }}]{% endmacro %}{{ f(' a ') }}"
                   "{{ 'abc'.split('b') }}{{ 'x'.startswith('x') }}{{ 'ab' | capitalize }}"
                   "{% generation %}g{% endgeneration %}")
                .value(),
            "[a]['a', 'c']TrueAbg");
  EXPECT_EQ(Render("a\n  {% if true %}\nb\n  {% endif %}\nc\n").value(), "a\nb\nc");
  EXPECT_EQ(Render("{{ strftime_now('%Y') | length }}").value(), "4");
}

struct BadTemplate {
  const char* text;
  absl::StatusCode code;
  const char* message;
};

// Every one of these gets an error of its own, and the next request is served.
TEST_F(ChatTemplateTest, SurvivesTemplatesThatMisbehave) {
  host_ = ChatTemplateHost::Create({.render_deadline = std::chrono::milliseconds(500),
                                    .memory_bytes_max = size_t{200} << 20,
                                    .output_chars_max = 100000});
  const std::vector<BadTemplate> cases = {
      {"{% if %}", absl::StatusCode::kInvalidArgument, "line 1"},
      {"{{ raise_exception('roles must alternate') }}", absl::StatusCode::kInvalidArgument,
       "roles must alternate"},
      {"{{ nothing.at.all }}", absl::StatusCode::kInvalidArgument, "undefined"},
      {"{{ ''.__class__.__mro__[1].__subclasses__() }}", absl::StatusCode::kInvalidArgument,
       "sandbox"},
      {"{{ raise_exception.__globals__['os'].system('id') }}", absl::StatusCode::kInvalidArgument,
       "sandbox"},
      {"{{ v.append(1) }}", absl::StatusCode::kInvalidArgument, "sandbox"},
      {"{% include '/etc/passwd' %}", absl::StatusCode::kInvalidArgument, "no loader"},
      {"{{ 1 // 0 }}", absl::StatusCode::kInvalidArgument, "ZeroDivisionError"},
      {"{{ range(10 ** 9) }}", absl::StatusCode::kInvalidArgument, "Range too big"},
      {"{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", absl::StatusCode::kInvalidArgument,
       "Recursion"},
      {"{{ 'a' * (v | length * 10 ** 9) }}", absl::StatusCode::kResourceExhausted, "memory"},
      {"{{ 'a' * 200000 }}", absl::StatusCode::kResourceExhausted, "at most 100000"},
      {"{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
       absl::StatusCode::kDeadlineExceeded, "500 ms"},
      {"{{ (v | length + 9) ** (10 ** 9) }}", absl::StatusCode::kDeadlineExceeded, "500 ms"},
  };
  for (const BadTemplate& bad : cases) {
    const absl::StatusOr<std::string> text = Render(bad.text, R"({"v": [1]})");
    ASSERT_FALSE(text.ok()) << bad.text;
    EXPECT_EQ(text.status().code(), bad.code) << bad.text << ": " << text.status();
    EXPECT_THAT(std::string(text.status().message()), HasSubstr(bad.message)) << bad.text;
    EXPECT_EQ(Render("fine {{ v[0] }}", R"({"v": [1]})").value(), "fine 1") << bad.text;
  }
}

// What a look-up finds in an object and in a loop is what the reference finds: methods before keys,
// nothing that begins with an underscore, "undefined" for what is missing.
TEST_F(ChatTemplateTest, LooksUpNamesAsTheReferenceDoes) {
  EXPECT_EQ(Render("{% for k, v in m.items() %}{{ k }}={{ v }},{% endfor %}{{ m['items'] }}"
                   "{{ m.a }}{{ m.b is defined }}{{ m.b or 'none' }}{{ m.c is none }}",
                   R"({"m": {"a": 1, "items": 2, "c": null}})")
                .value(),
            "a=1,items=2,c=None,21FalsenoneTrue");
  EXPECT_EQ(Render("{% for x in v %}{{ loop.index }}{{ loop.cycle('a', 'b') }}"
                   "{{ loop.nothing is defined }}{% endfor %}",
                   R"({"v": [1, 2]})")
                .value(),
            "1aFalse2bFalse");
  for (const char* text : {"{{ m.__class__.x }}", "{{ m.b.c }}", "{{ m.clear() }}",
                           "{% for x in v %}{{ loop._iterator.x }}{% endfor %}",
                           "{% for x in v %}{{ loop.__init__.x }}{% endfor %}"}) {
    EXPECT_EQ(Render(text, R"({"m": {}, "v": [1]})").status().code(),
              absl::StatusCode::kInvalidArgument)
        << text;
  }
}

TEST_F(ChatTemplateTest, RefusesVariablesThatAreNotJson) {
  EXPECT_EQ(Render("x", "{").status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Render("x", "").status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Render("x", "[1]").status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Render("x", std::string(200000, '[')).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Render("x").value(), "x");
}

TEST_F(ChatTemplateTest, StartsAnewAfterTheChildDied) {
  ASSERT_EQ(host_->idle_child_pid(), 0);
  ASSERT_EQ(Render("x").value(), "x");
  const int pid = host_->idle_child_pid();
  ASSERT_GT(pid, 0);
  ASSERT_EQ(kill(pid, SIGKILL), 0);
  EXPECT_EQ(Render("x").status().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(Render("x").value(), "x");
  EXPECT_NE(host_->idle_child_pid(), pid);
}

TEST_F(ChatTemplateTest, OtherThreadsGoOnWhileOneTemplateLoops) {
  host_ = ChatTemplateHost::Create({.render_deadline = std::chrono::minutes(5)});
  ASSERT_EQ(Render("x").value(), "x");
  const int looping_pid = host_->idle_child_pid();
  std::thread looping([&] {
    // Not its deadline ends it but what is done below, after the others.
    EXPECT_EQ(Render("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}"
                     "{% endfor %}")
                  .status()
                  .code(),
              absl::StatusCode::kUnavailable);
  });
  while (host_->idle_child_pid() == looping_pid) std::this_thread::yield();
  std::vector<std::thread> others;
  for (int i = 0; i < 4; ++i) {
    others.emplace_back([&, i] {
      for (int k = 0; k < 5; ++k) {
        EXPECT_EQ(Render("{{ i }}", "{\"i\": " + std::to_string(i) + "}").value_or("failed"),
                  std::to_string(i));
      }
    });
  }
  for (std::thread& other : others) other.join();
  ASSERT_EQ(kill(looping_pid, SIGKILL), 0);
  looping.join();
}

TEST_F(ChatTemplateTest, SaysWhatIsMissingWithoutAnInterpreter) {
  host_ = ChatTemplateHost::Create({.python = "/nonexistent/python3"});
  const absl::Status status = Render("x").status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), HasSubstr("install python3-jinja2"));
  EXPECT_THAT(std::string(status.message()), HasSubstr("/nonexistent/python3"));
}

TEST_F(ChatTemplateTest, RendersALongConversation) {
  json messages = json::array();
  for (int i = 0; i < 64; ++i) {
    messages.push_back({{"role", i % 2 == 0 ? "user" : "assistant"},
                        {"content", std::string(1000, static_cast<char>('a' + i % 26))}});
  }
  const json golden = ReadGolden("glm");
  const ChatTemplate chat_template(golden["template"], "", "", host_.get());
  const std::string variables =
      json({{"messages", messages}, {"add_generation_prompt", true}}).dump();
  const std::string text = chat_template.Render(variables).value();
  EXPECT_GT(text.size(), 64000U);
  EXPECT_EQ(chat_template.Render(variables).value(), text);
  EXPECT_TRUE(chat_template.Check().ok());
}

}  // namespace
}  // namespace packtrain

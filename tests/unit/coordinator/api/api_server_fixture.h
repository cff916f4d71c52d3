#pragma once

// A server over two fake deployments, "big" (alias "main") and "small", on a free port.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <prometheus/registry.h>

#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "coordinator/api/api_server.h"
#include "coordinator/tokenizer/chat_template.h"
#include "coordinator/tokenizer/chat_template_host.h"
#include "tests/support/fake_deployment.h"
#include "tests/support/http_test_client.h"

namespace packtrain {

class ApiServerFixture : public ::testing::Test {
 public:
  static constexpr int kContext = 4096;

  static DeploymentInfo Info(std::string name, std::vector<std::string> aliases, std::string role) {
    return {.name = std::move(name),
            .aliases = std::move(aliases),
            .role = std::move(role),
            .architecture = "glm-dsa",
            .context_length = kContext,
            .parameters = 22290000,
            .file_bytes = 14421376,
            .created_unix_s = 1700000000,
            .recurrent = true};
  }

 protected:
  static void SetUpTestSuite() { host_ = ChatTemplateHost::Create(); }
  static void TearDownTestSuite() { host_.reset(); }

  ApiServerFixture()
      : template_(
            "{% for m in messages %}{{ m.role }}:{% if m.reasoning_content %}"
            "[{{ m.reasoning_content }}]{% endif %}{{ m.content }}\n{% endfor %}"
            "{% for t in tools or [] %}{{ t | tojson }}{% endfor %}{{ reasoning_effort }}"
            "{% if messages[0].content == 'loop' %}{{ raise_exception('no loops') }}{% endif %}"
            "{% if add_generation_prompt %}assistant:{% if enable_thinking %}<think>{% endif %}"
            "{% endif %}",
            "<bos>", "<eos>", host_.get()),
        big_(Info("big", {"main"}, "primary"),
             std::make_unique<FakeTokenizer>(
                 std::vector<std::string>{"Hello", ", ", std::string(8192, 'x')}),
             &template_),
        small_(Info("small", {}, "sidecar"), std::make_unique<FakeTokenizer>(), nullptr) {
    big_.SetScript(BytesOf("Hi!"));
    small_.SetScript(BytesOf("ok"));
  }

  void Start(ApiServerOptions options = {}) {
    absl::StatusOr<std::unique_ptr<ApiServer>> server = ApiServer::Start(
        std::move(options), {&big_, &small_}, std::make_shared<prometheus::Registry>());
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
  }

  uint16_t port() const { return server_->port(); }
  HttpTestReply Post(const std::string& path, const nlohmann::json& body) {
    HttpTestClient client(port());
    return client.Post(path, body.dump());
  }
  HttpTestReply Get(const std::string& path) {
    HttpTestClient client(port());
    return client.Get(path);
  }
  // The last prompt that `big` got, as text.
  std::string LastPrompt() const {
    return big_.tokenizer().Decode(big_.last_request().prompt, /*show_special=*/true);
  }
  // The data of every event of a stream but "[DONE]", which must be the last one.
  static std::vector<nlohmann::json> Events(const HttpTestReply& reply) {
    std::vector<nlohmann::json> events;
    bool done = false;
    for (size_t at = 0; at < reply.body.size();) {
      const size_t end = reply.body.find("\n\n", at);
      if (end == std::string::npos) break;
      const std::string event = reply.body.substr(at, end - at);
      at = end + 2;
      EXPECT_FALSE(done) << event;
      if (event.starts_with(":")) continue;
      EXPECT_TRUE(event.starts_with("data: ")) << event;
      done = event == "data: [DONE]";
      if (!done) events.push_back(nlohmann::json::parse(event.substr(6)));
    }
    EXPECT_TRUE(done) << reply.body;
    return events;
  }
  static nlohmann::json Chat(const std::string& content) {
    return {{"model", "big"}, {"messages", {{{"role", "user"}, {"content", content}}}}};
  }
  // Sends `body` and expects this error about this field.
  void ExpectError(const std::string& path, const nlohmann::json& body, int status,
                   const nlohmann::json& param, const std::string& message) {
    const HttpTestReply reply = Post(path, body);
    EXPECT_EQ(reply.status, status) << body.dump() << reply.body;
    const nlohmann::json error = nlohmann::json::parse(reply.body)["error"];
    EXPECT_EQ(error["param"], param) << reply.body;
    EXPECT_THAT(error["message"].get<std::string>(), ::testing::HasSubstr(message));
    EXPECT_TRUE(error["type"].is_string() && error.contains("code"));
  }

  inline static std::unique_ptr<ChatTemplateHost> host_;
  ChatTemplate template_;
  FakeDeployment big_;
  FakeDeployment small_;
  std::unique_ptr<ApiServer> server_;
};

}  // namespace packtrain

// Chat templates that do not come back: who has to wait, and who is turned away.

#include <condition_variable>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "tests/unit/coordinator/api/api_server_fixture.h"

namespace packtrain {
namespace {

// Renders only once it is released.
class HeldHost : public ChatTemplateHost {
 public:
  absl::StatusOr<std::string> Render(std::string_view, std::string_view) override {
    std::unique_lock<std::mutex> lock(mutex_);
    ++rendering_;
    changed_.notify_all();
    changed_.wait(lock, [this] { return released_; });
    return absl::DeadlineExceededError("rendering took too long");
  }
  int idle_child_pid() const override { return 0; }

  void WaitFor(int rendering) {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [&] { return rendering_ >= rendering; });
  }
  void Release() {
    const std::lock_guard<std::mutex> lock(mutex_);
    released_ = true;
    changed_.notify_all();
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  int rendering_ = 0;
  bool released_ = false;
};

TEST(ChatTemplateLoadTest, ATemplateThatHangsHoldsUpChatsOfItsOwnModelOnly) {
  HeldHost held;
  const std::unique_ptr<ChatTemplateHost> host = ChatTemplateHost::Create();
  const ChatTemplate hanging("{{ messages }}", "", "", &held);
  const ChatTemplate working("{{ messages[0].content }}", "", "", host.get());
  FakeDeployment big(ApiServerFixture::Info("big", {}, "primary"),
                     std::make_unique<FakeTokenizer>(), &hanging);
  FakeDeployment small(ApiServerFixture::Info("small", {}, "sidecar"),
                       std::make_unique<FakeTokenizer>(), &working);
  big.SetScript(BytesOf("Hi!"));
  small.SetScript(BytesOf("ok"));
  constexpr int kPreparingMax = 5;
  const auto server = ApiServer::Start({.preparing_max = kPreparingMax}, {&big, &small},
                                       std::make_shared<prometheus::Registry>());
  ASSERT_TRUE(server.ok()) << server.status();
  const uint16_t port = (*server)->port();
  const auto chat = [](const char* model) {
    return nlohmann::json(
               {{"model", model}, {"messages", {{{"role", "user"}, {"content", "Hello"}}}}})
        .dump();
  };

  std::vector<std::unique_ptr<HttpTestClient>> waiting;
  for (int i = 0; i < kPreparingMax; ++i) {
    waiting.push_back(std::make_unique<HttpTestClient>(port));
    waiting.back()->SendRequest("POST", "/v1/chat/completions", chat("big"));
  }
  held.WaitFor(ChatTemplateHost::kChildrenMax);

  EXPECT_EQ(HttpTestClient(port).Post("/v1/chat/completions", chat("small")).status, 200);
  EXPECT_EQ(
      HttpTestClient(port).Post("/v1/completions", R"({"model": "big", "prompt": "Hello"})").status,
      200);
  const HttpTestReply refused = HttpTestClient(port).Post("/v1/chat/completions", chat("big"));
  EXPECT_EQ(refused.status, 429) << refused.body;
  EXPECT_THAT(refused.body, ::testing::HasSubstr("for the model \\\"big\\\""));

  held.Release();
  for (const auto& client : waiting) {
    const HttpTestReply reply = client->ReadReply();
    EXPECT_EQ(reply.status, 400) << reply.body;
    EXPECT_THAT(reply.body, ::testing::HasSubstr("rendering took too long"));
  }
}

}  // namespace
}  // namespace packtrain

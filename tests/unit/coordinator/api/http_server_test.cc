// Clients that leave, crawl, flood or talk nonsense.

#include "coordinator/api/http_server.h"

#include <sys/resource.h>

#include <cstdint>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "tests/unit/coordinator/api/api_server_fixture.h"

namespace packtrain {
namespace {

using ::nlohmann::json;
using ::testing::HasSubstr;

constexpr char kChat[] = "/v1/chat/completions";

class HttpServerTest : public ApiServerFixture {
 protected:
  json Stream(const std::string& content) {
    json request = Chat(content);
    request["stream"] = true;
    return request;
  }
};

TEST_F(HttpServerTest, KeepsConnectionsAndAnswersPipelinedRequests) {
  Start();
  HttpTestClient client(port());
  for (int i = 0; i < 3; ++i) EXPECT_EQ(client.Get("/health").status, 200);
  client.SendRequest("GET", "/health");
  client.SendRequest("POST", kChat, Chat("q").dump());
  client.SendRequest("GET", "/v1/models");
  EXPECT_THAT(client.ReadReply().body, HasSubstr("\"ok\""));
  EXPECT_THAT(client.ReadReply().body, HasSubstr("Hi!"));
  EXPECT_THAT(client.ReadReply().body, HasSubstr("\"list\""));
  EXPECT_EQ(client.Post(kChat, Stream("q").dump()).status, 200);
  EXPECT_EQ(client.Get("/health").status, 200);
  EXPECT_EQ(server_->connections(), 1U);
}

TEST_F(HttpServerTest, SpeaksOldAndClosingHttp) {
  Start();
  HttpTestClient closing(port());
  EXPECT_EQ(closing.Get("/health", "Connection: close\r\n").headers.at("connection"), "close");
  EXPECT_TRUE(closing.ReadEnd());
  HttpTestClient old(port());
  const std::string body = Stream("q").dump();
  old.SendRaw("POST /v1/chat/completions HTTP/1.0\r\nContent-Length: " +
              std::to_string(body.size()) + "\r\n\r\n" + body);
  const HttpTestReply reply = old.ReadReply();
  EXPECT_FALSE(reply.headers.contains("transfer-encoding"));
  EXPECT_THAT(reply.body, HasSubstr("data: [DONE]"));
  HttpTestClient head(port());
  head.SendRequest("HEAD", "/health");
  EXPECT_EQ(head.ReadReply(/*head_only=*/true).status, 200);
  EXPECT_EQ(head.Get("/health").status, 200);
}

TEST_F(HttpServerTest, TakesChunkedAndExpectingUploads) {
  Start();
  const std::string body = Chat("q").dump();
  char size[16];
  std::snprintf(size, sizeof(size), "%zx\r\n", body.size());
  HttpTestClient chunked(port());
  chunked.SendRaw("POST /v1/chat/completions HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n");
  chunked.SendRaw(size + body + "\r\n0\r\n\r\n");
  EXPECT_EQ(chunked.ReadReply().status, 200);
  HttpTestClient expecting(port());
  expecting.SendRaw(
      "POST /v1/chat/completions HTTP/1.1\r\nExpect: 100-continue\r\n"
      "Content-Length: " +
      std::to_string(body.size()) + "\r\n\r\n");
  EXPECT_THAT(expecting.ReadUntil("\r\n\r\n"), HasSubstr("100 Continue"));
  expecting.SendRaw(body);
  EXPECT_EQ(expecting.ReadReply().status, 200);
}

TEST_F(HttpServerTest, TakesARequestByteByByte) {
  Start();
  HttpTestClient client(port());
  for (const char c : std::string("GET /health HTTP/1.1\r\nHost: x\r\n\r\n")) {
    client.SendRaw(std::string(1, c));
  }
  EXPECT_EQ(client.ReadReply().status, 200);
}

TEST_F(HttpServerTest, RefusesWhatIsTooLargeOrNotHttp) {
  ApiServerOptions options;
  options.http.header_bytes_max = 1024;
  options.http.body_bytes_max = 2048;
  Start(options);
  HttpTestClient body(port());
  const HttpTestReply large = body.Post(kChat, std::string(100000, 'x'));
  EXPECT_EQ(large.status, 413);
  EXPECT_THAT(large.body, HasSubstr("limit of 2048 bytes"));
  EXPECT_TRUE(body.ReadEnd());
  HttpTestClient header(port());
  EXPECT_EQ(header.Get("/health", "X: " + std::string(2000, 'x') + "\r\n").status, 431);
  HttpTestClient nonsense(port());
  nonsense.SendRaw("\x16\x03\x01 hello\r\n\r\n");
  EXPECT_EQ(nonsense.ReadReply().status, 400);
  HttpTestClient preface(port());
  preface.SendRaw("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
  EXPECT_EQ(preface.ReadReply().status, 400);
  EXPECT_EQ(Get("/health").status, 200);
}

TEST_F(HttpServerTest, SurvivesBadJson) {
  Start();
  HttpTestClient client(port());
  const std::vector<std::string> bodies = {"",
                                           "{",
                                           "[]",
                                           "null",
                                           "\"x\"",
                                           "{\"a\":}",
                                           "{\"messages\": \"\\ud800\"}",
                                           "{\"a\":\"\xff\"}",
                                           std::string(100000, '['),
                                           "{\"a\":" + std::string(70, '{'),
                                           "{\"temperature\": 1e999}",
                                           "{\"n\": 99999999999999999999999}",
                                           "{\"messages\":[[[]]]}",
                                           std::string("{\"a\0\":1}", 8)};
  for (const std::string& body : bodies) {
    const HttpTestReply reply = client.Post(kChat, body);
    EXPECT_EQ(reply.status, 400) << body.substr(0, 40);
    EXPECT_TRUE(json::parse(reply.body)["error"]["message"].is_string());
  }
  EXPECT_EQ(client.Post(kChat, Chat("q").dump()).status, 200);
}

// A valid body with bytes changed, dropped and doubled at random: any answer but a crash or a hang.
TEST_F(HttpServerTest, SurvivesMangledBodies) {
  Start();
  json full = Chat("q");
  full.update(json::parse(R"({"stop": ["a"], "n": 2, "logit_bias": {"5": 1}, "logprobs": true,
    "top_logprobs": 2, "tools": [{"type": "function"}], "stream_options": {"include_usage": true},
    "chat_template_kwargs": {"enable_thinking": true}, "max_tokens": 4})"));
  const std::string good = full.dump();
  std::mt19937 random(7);
  HttpTestClient client(port());
  int accepted = 0;
  for (int i = 0; i < 500; ++i) {
    std::string body = good;
    for (int k = 0; k < 1 + i % 3; ++k) {
      const size_t at = random() % body.size();
      switch (random() % 3) {
        case 0:
          body[at] = static_cast<char>(random());
          break;
        case 1:
          body.erase(at, 1 + random() % 4);
          break;
        default:
          body.insert(at, body.substr(at, random() % 8));
      }
    }
    const HttpTestReply reply = client.Post(kChat, body);
    ASSERT_TRUE(reply.status == 200 || reply.status == 400 || reply.status == 404) << reply.status;
    accepted += reply.status == 200;
  }
  EXPECT_GT(accepted, 0);
  EXPECT_TRUE(big_.WaitIdle());
}

TEST_F(HttpServerTest, CancelsInEveryPhaseWhenTheClientLeaves) {
  Start();
  big_.SetEndless(true);
  for (const auto hold : {FakeDeployment::Hold::kPrompt, FakeDeployment::Hold::kTokens,
                          FakeDeployment::Hold::kNone}) {
    for (const bool stream : {true, false}) {
      big_.SetHold(hold);
      big_.SetTokenInterval(std::chrono::milliseconds(1));
      const int before = big_.submitted();
      HttpTestClient client(port());
      client.SendRequest("POST", kChat, (stream ? Stream("q") : Chat("q")).dump());
      while (big_.submitted() == before) std::this_thread::yield();
      if (stream && hold == FakeDeployment::Hold::kNone) {
        EXPECT_NE(client.ReadUntil("\"H\""), "");
      }
      client.Close();
      EXPECT_TRUE(big_.WaitIdle());
    }
  }
  EXPECT_EQ(big_.cancelled(), 6);
}

TEST_F(HttpServerTest, CutsOffASlowReaderAndServesOthers) {
  ApiServerOptions options;
  options.http.unsent_bytes_max = 64 << 10;
  Start(options);
  big_.SetScript({FakeTokenizer::kFirstWord + 2});  // 8 KiB of text each
  big_.SetEndless(true);
  big_.SetTokenInterval(std::chrono::milliseconds(1));
  HttpTestClient slow(port(), /*receive_buffer_bytes=*/4096);
  json request = Stream("q");
  request["n"] = 8;
  slow.SendRequest("POST", kChat, request.dump());
  EXPECT_NE(slow.ReadUntil("\r\n\r\n"), "");
  EXPECT_TRUE(big_.WaitIdle());  // it was cut off, and its work with it
  EXPECT_EQ(big_.cancelled(), 8);
  big_.SetEndless(false);
  EXPECT_EQ(Post(kChat, Chat("q")).status, 200);
}

TEST_F(HttpServerTest, DropsAReaderThatTakesNothing) {
  ApiServerOptions options;
  options.http.write_timeout = std::chrono::milliseconds(100);
  options.http.unsent_bytes_max = size_t{1} << 30;
  Start(options);
  big_.SetScript({FakeTokenizer::kFirstWord + 2});
  big_.SetEndless(true);
  big_.SetTokenInterval(std::chrono::milliseconds(1));
  HttpTestClient slow(port(), /*receive_buffer_bytes=*/4096);
  json request = Stream("q");
  request["n"] = 8;
  slow.SendRequest("POST", kChat, request.dump());
  while (big_.submitted() == 0) std::this_thread::yield();
  EXPECT_TRUE(big_.WaitIdle());
  EXPECT_EQ(big_.cancelled(), 8);
}

TEST_F(HttpServerTest, ClosesIdleAndUnfinishedConnections) {
  ApiServerOptions options;
  options.http.idle_timeout = std::chrono::milliseconds(50);
  options.http.request_timeout = std::chrono::milliseconds(50);
  Start(options);
  HttpTestClient idle(port());
  HttpTestClient unfinished(port());
  unfinished.SendRaw("POST /v1/completions HTTP/1.1\r\nContent-Length: 10\r\n\r\nabc");
  EXPECT_TRUE(idle.ReadEnd());
  EXPECT_TRUE(unfinished.ReadEnd());
}

TEST_F(HttpServerTest, AThousandIdleConnectionsHarmNobody) {
  rlimit limit{};
  getrlimit(RLIMIT_NOFILE, &limit);
  limit.rlim_cur = std::min<rlim_t>(limit.rlim_max, 4096);
  setrlimit(RLIMIT_NOFILE, &limit);
  ASSERT_GE(limit.rlim_cur, 2100U);
  Start();
  std::vector<std::unique_ptr<HttpTestClient>> idle;
  for (int i = 0; i < 1000; ++i) {
    idle.push_back(std::make_unique<HttpTestClient>(port()));
    ASSERT_EQ(idle.back()->Get("/health").status, 200);
  }
  EXPECT_EQ(server_->connections(), 1000U);
  EXPECT_EQ(Post(kChat, Chat("q")).status, 200);
  EXPECT_EQ(Events(Post(kChat, Stream("q"))).size(), 5U);
  for (const auto& client : idle) ASSERT_EQ(client->Get("/health").status, 200);
}

TEST_F(HttpServerTest, BoundsTheNumberOfConnections) {
  ApiServerOptions options;
  options.http.connections_max = 2;
  Start(options);
  HttpTestClient first(port());
  HttpTestClient second(port());
  EXPECT_EQ(first.Get("/health").status, 200);
  EXPECT_EQ(second.Get("/health").status, 200);
  HttpTestClient third(port());
  EXPECT_TRUE(third.ReadEnd());
  first.Close();
  while (server_->connections() > 1) std::this_thread::yield();
  EXPECT_EQ(Get("/health").status, 200);
}

TEST_F(HttpServerTest, BoundsWhatIsUploadedAndPreparedAtOnce) {
  ApiServerOptions options;
  options.http.body_bytes_total_max = 8000;
  Start(options);
  HttpTestClient holding(port());
  holding.SendRaw("POST /v1/completions HTTP/1.1\r\nContent-Length: 7000\r\n\r\n" +
                  std::string(6000, ' '));
  EXPECT_EQ(Get("/health").status, 200);  // by now the 6000 bytes have arrived
  HttpTestClient other(port());
  EXPECT_EQ(other.Post(kChat, Chat(std::string(4000, 'x')).dump()).status, 503);
  holding.Close();
  while (server_->connections() > 1) std::this_thread::yield();
  EXPECT_EQ(Post(kChat, Chat(std::string(4000, 'x'))).status, 200);
}

TEST_F(HttpServerTest, StopsWhileStreamsAreOpen) {
  Start();
  big_.SetEndless(true);
  big_.SetTokenInterval(std::chrono::milliseconds(1));
  std::vector<std::unique_ptr<HttpTestClient>> clients;
  for (int i = 0; i < 8; ++i) {
    clients.push_back(std::make_unique<HttpTestClient>(port()));
    clients.back()->SendRequest("POST", kChat, Stream("q").dump());
    EXPECT_NE(clients.back()->ReadUntil("\"H\""), "");
  }
  server_.reset();
  EXPECT_TRUE(big_.WaitIdle());
  for (const auto& client : clients) EXPECT_TRUE(client->ReadEnd());
}

TEST_F(HttpServerTest, ManyClientsAtOnceGetTheirOwnAnswers) {
  Start();
  std::vector<std::thread> threads;
  for (int i = 0; i < 8; ++i) {
    threads.emplace_back([&, i] {
      HttpTestClient client(port());
      for (int k = 0; k < 10; ++k) {
        const json request = {{"model", "small"},
                              {"prompt", std::string(1, static_cast<char>('a' + i))},
                              {"echo", true},
                              {"stream", k % 2 == 0}};
        const HttpTestReply reply = client.Post("/v1/completions", request.dump());
        EXPECT_EQ(reply.status, 200);
        EXPECT_THAT(reply.body, HasSubstr(std::string("\"text\":\"") + static_cast<char>('a' + i)));
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

}  // namespace
}  // namespace packtrain

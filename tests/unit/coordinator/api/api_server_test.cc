// What clients get for what they ask, over real sockets and a scripted deployment.

#include "coordinator/api/api_server.h"

#include <string>
#include <vector>

#include "tests/unit/coordinator/api/api_server_fixture.h"

namespace packtrain {
namespace {

using ::nlohmann::json;
using ::testing::HasSubstr;
using ::testing::Not;

class ApiServerTest : public ApiServerFixture {};

constexpr char kChat[] = "/v1/chat/completions";
constexpr char kText[] = "/v1/completions";

TEST_F(ApiServerTest, AnswersAChat) {
  Start();
  const HttpTestReply reply = Post(kChat, Chat("Hello"));
  ASSERT_EQ(reply.status, 200) << reply.body;
  EXPECT_EQ(reply.headers.at("content-type"), "application/json");
  const json body = json::parse(reply.body);
  EXPECT_EQ(body["object"], "chat.completion");
  EXPECT_EQ(body["model"], "big");
  EXPECT_TRUE(body["id"].get<std::string>().starts_with("chatcmpl-"));
  const json& choice = body["choices"].at(0);
  EXPECT_EQ(choice["message"]["role"], "assistant");
  EXPECT_EQ(choice["message"]["content"], "Hi!");
  EXPECT_FALSE(choice["message"].contains("reasoning_content"));
  EXPECT_EQ(choice["finish_reason"], "stop");
  EXPECT_EQ(LastPrompt(), "<bos>user:Hello\nassistant:");
  const int prompt_tokens = static_cast<int>(big_.last_request().prompt.size());
  EXPECT_EQ(body["usage"]["prompt_tokens"], prompt_tokens);
  EXPECT_EQ(body["usage"]["completion_tokens"], 4);  // with the end-of-generation token
  EXPECT_EQ(body["usage"]["total_tokens"], prompt_tokens + 4);
  EXPECT_EQ(body["usage"]["prompt_tokens_details"]["cached_tokens"], 1);
  EXPECT_EQ(body["timings"]["predicted_n"], 4);
  EXPECT_DOUBLE_EQ(body["timings"]["predicted_per_second"], 150.0);  // 3 steps in 20 ms
  EXPECT_DOUBLE_EQ(body["timings"]["prompt_per_second"], (prompt_tokens - 1) * 100.0);
}

TEST_F(ApiServerTest, TellsWhereTheLastTurnOfAChatBegins) {
  Start();
  json chat = Chat("Hello");
  ASSERT_EQ(Post(kChat, chat).status, 200);
  EXPECT_EQ(big_.last_request().last_turn_start, 0);
  chat["messages"].push_back({{"role", "assistant"}, {"content", "Hi!"}});
  chat["messages"].push_back({{"role", "user"}, {"content", "xyz"}});
  chat["messages"].push_back({{"role", "tool"}, {"content", "7"}});
  ASSERT_EQ(Post(kChat, chat).status, 200);
  std::vector<TokenId> before = big_.last_request().prompt;
  before.resize(static_cast<size_t>(big_.last_request().last_turn_start));
  EXPECT_EQ(big_.tokenizer().Decode(before, /*show_special=*/true),
            "<bos>user:Hello\nassistant:Hi!\nuser:");
}

TEST_F(ApiServerTest, StreamsAChat) {
  Start();
  json request = Chat("Hello");
  request["stream"] = true;
  request["stream_options"] = {{"include_usage", true}};
  const HttpTestReply reply = Post(kChat, request);
  ASSERT_EQ(reply.status, 200);
  EXPECT_THAT(reply.headers.at("content-type"), HasSubstr("text/event-stream"));
  EXPECT_TRUE(reply.complete);
  const std::vector<json> events = Events(reply);
  ASSERT_EQ(events.size(), 6U);  // role, three bytes, finish, usage
  EXPECT_EQ(events[0]["choices"][0]["delta"], json({{"role", "assistant"}, {"content", ""}}));
  EXPECT_EQ(events[1]["choices"][0]["delta"], json({{"content", "H"}}));
  EXPECT_EQ(events[1]["object"], "chat.completion.chunk");
  EXPECT_TRUE(events[1]["choices"][0]["finish_reason"].is_null());
  EXPECT_EQ(events[4]["choices"][0]["finish_reason"], "stop");
  EXPECT_EQ(events[5]["choices"], json::array());
  EXPECT_EQ(events[5]["usage"]["completion_tokens"], 4);
  EXPECT_TRUE(events[5].contains("timings"));
  for (const json& event : events) EXPECT_EQ(event["id"], events[0]["id"]);
}

TEST_F(ApiServerTest, PutsTimingsIntoTheLastChunkWithoutUsage) {
  Start();
  json request = Chat("Hello");
  request["stream"] = true;
  const std::vector<json> events = Events(Post(kChat, request));
  for (size_t i = 0; i < events.size(); ++i) {
    EXPECT_EQ(events[i].contains("timings"), i + 1 == events.size()) << i;
    EXPECT_FALSE(events[i].contains("usage"));
  }
}

TEST_F(ApiServerTest, SendsHeadersBeforeThePromptIsDone) {
  Start();
  big_.SetHold(FakeDeployment::Hold::kPrompt);
  json request = Chat("Hello");
  request["stream"] = true;
  HttpTestClient client(port());
  client.SendRequest("POST", kChat, request.dump());
  EXPECT_THAT(client.ReadUntil("\r\n\r\n"), HasSubstr("200 OK"));
  big_.SetHold(FakeDeployment::Hold::kNone);
  EXPECT_NE(client.ReadUntil("[DONE]\n\n"), "");
}

TEST_F(ApiServerTest, PingsASilentStream) {
  ApiServerOptions options;
  options.http.ping_interval = std::chrono::milliseconds(20);
  Start(options);
  big_.SetHold(FakeDeployment::Hold::kTokens);
  json request = Chat("Hello");
  request["stream"] = true;
  HttpTestClient client(port());
  client.SendRequest("POST", kChat, request.dump());
  EXPECT_NE(client.ReadUntil(": ping\n\n"), "");
  EXPECT_NE(client.ReadUntil(": ping\n\n"), "");
  big_.SetHold(FakeDeployment::Hold::kNone);
  EXPECT_NE(client.ReadUntil("[DONE]\n\n"), "");
}

TEST_F(ApiServerTest, SplitsReasoningFromTheAnswer) {
  Start();
  std::vector<TokenId> script = BytesOf("\nwhy");
  script.push_back(FakeTokenizer::kThinkEnd);
  for (const TokenId id : BytesOf("\n\nso")) script.push_back(id);
  big_.SetScript(script);
  json request = Chat("q");
  request["chat_template_kwargs"] = {{"enable_thinking", true}};
  json body = json::parse(Post(kChat, request).body);
  EXPECT_THAT(LastPrompt(), HasSubstr("assistant:<think>"));
  EXPECT_EQ(body["choices"][0]["message"]["reasoning_content"], "why");
  EXPECT_EQ(body["choices"][0]["message"]["content"], "so");
  EXPECT_EQ(body["usage"]["completion_tokens_details"]["reasoning_tokens"], 5);

  request["stream"] = true;
  std::string reasoning;
  std::string content;
  for (const json& event : Events(Post(kChat, request))) {
    const json& delta = event["choices"][0]["delta"];
    reasoning += delta.value("reasoning_content", "");
    content += delta.value("content", "");
  }
  EXPECT_EQ(reasoning, "why");
  EXPECT_EQ(content, "so");
}

TEST_F(ApiServerTest, ThinkingFollowsTheRequest) {
  Start();
  const auto prompt_with = [&](const json& fields) {
    json request = Chat("q");
    request.update(fields);
    EXPECT_EQ(Post(kChat, request).status, 200);
    return LastPrompt();
  };
  EXPECT_THAT(prompt_with(json::object()), Not(HasSubstr("<think>")));
  EXPECT_THAT(prompt_with({{"reasoning_effort", "high"}}), HasSubstr("highassistant:<think>"));
  EXPECT_THAT(prompt_with({{"reasoning_effort", "none"}}), Not(HasSubstr("<think>")));
  EXPECT_THAT(prompt_with({{"reasoning_effort", "high"},
                           {"chat_template_kwargs", {{"enable_thinking", false}}}}),
              Not(HasSubstr("<think>")));
}

TEST_F(ApiServerTest, PassesHistoryAndToolsToTheTemplate) {
  Start();
  json request = Chat("q");
  request["messages"] = json::parse(R"([
    {"role": "developer", "content": [{"type": "text", "text": "be"}, {"type": "text", "text": "brief"}]},
    {"role": "assistant", "content": null, "reasoning": "hm",
     "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{\"a\": 1}"}}]},
    {"role": "tool", "tool_call_id": "1", "content": "5"},
    {"role": "assistant", "content": "x", "reasoning_content": "y"}])");
  request["tools"] = json::parse(R"([{"type": "function", "function": {"name": "f"}}])");
  ASSERT_EQ(Post(kChat, request).status, 200);
  EXPECT_EQ(LastPrompt(),
            "<bos>system:be\nbrief\nassistant:[hm]\ntool:5\nassistant:[y]x\n"
            R"({"function": {"name": "f"}, "type": "function"}assistant:)");
  request["tool_choice"] = "none";
  ASSERT_EQ(Post(kChat, request).status, 200);
  EXPECT_THAT(LastPrompt(), Not(HasSubstr("function")));
}

TEST_F(ApiServerTest, GivesChatLogprobs) {
  Start();
  big_.SetScript({FakeTokenizer::kFirstWord, 0xC3, 0xBC});
  json request = Chat("q");
  request["logprobs"] = true;
  request["top_logprobs"] = 2;
  const json content = json::parse(Post(kChat, request).body)["choices"][0]["logprobs"]["content"];
  ASSERT_EQ(content.size(), 3U);
  EXPECT_EQ(content[0]["token"], "Hello");
  EXPECT_EQ(content[0]["logprob"], -0.5);
  EXPECT_EQ(content[0]["bytes"], json({72, 101, 108, 108, 111}));
  ASSERT_EQ(content[0]["top_logprobs"].size(), 2U);
  EXPECT_EQ(content[0]["top_logprobs"][1]["token"], ", ");
  EXPECT_EQ(content[1]["bytes"], json({0xC3}));
  EXPECT_EQ(content[1]["token"], "\uFFFD");
  request["stream"] = true;
  size_t entries = 0;
  for (const json& event : Events(Post(kChat, request))) {
    const json& logprobs = event["choices"][0]["logprobs"];
    if (!logprobs.is_null()) entries += logprobs["content"].size();
  }
  EXPECT_EQ(entries, 3U);
}

TEST_F(ApiServerTest, CompletesTextPromptsOfEveryForm) {
  Start();
  for (const json& prompt :
       {json("ab"), json({"ab"}), json({256, 97, 98}), json(json::array({json({256, 97, 98})}))}) {
    const HttpTestReply reply = Post(kText, {{"model", "small"}, {"prompt", prompt}});
    ASSERT_EQ(reply.status, 200) << reply.body;
    const json body = json::parse(reply.body);
    EXPECT_EQ(body["object"], "text_completion");
    EXPECT_EQ(body["choices"][0]["text"], "ok");
    EXPECT_EQ(small_.last_request().prompt, (std::vector<TokenId>{256, 97, 98}));
    EXPECT_EQ(small_.last_request().max_tokens, 16);
  }
}

TEST_F(ApiServerTest, AnswersManyPromptsTimesN) {
  Start();
  small_.SetQueueMax(3);  // the others wait for these
  json request = {{"model", "small"}, {"prompt", {"a", "b", "c", "d"}}, {"n", 3}, {"echo", true}};
  const json body = json::parse(Post(kText, request).body);
  ASSERT_EQ(body["choices"].size(), 12U);
  for (size_t i = 0; i < 12; ++i) {
    EXPECT_EQ(body["choices"][i]["index"], i);
    EXPECT_EQ(body["choices"][i]["text"], std::string(1, static_cast<char>('a' + i / 3)) + "ok");
  }
  EXPECT_EQ(body["usage"]["prompt_tokens"], 8);
  EXPECT_EQ(body["usage"]["completion_tokens"], 36);
  request["stream"] = true;
  std::vector<std::string> texts(12);
  for (const json& event : Events(Post(kText, request))) {
    const json& choice = event["choices"][0];
    texts[choice["index"].get<size_t>()] += choice["text"].get<std::string>();
  }
  EXPECT_EQ(texts[11], "dok");
  EXPECT_EQ(small_.last_request().sampling.choice, 2U);
}

TEST_F(ApiServerTest, EchoesWithLogprobsOfThePrompt) {
  Start();
  const json body = json::parse(Post(kText, {{"model", "small"},
                                             {"prompt", json({0xC3, 0xBC, 98})},
                                             {"echo", true},
                                             {"logprobs", 1},
                                             {"max_tokens", 1}})
                                    .body);
  const json& choice = body["choices"][0];
  EXPECT_EQ(choice["text"], "übo");
  EXPECT_EQ(choice["finish_reason"], "length");
  const json& logprobs = choice["logprobs"];
  EXPECT_EQ(logprobs["tokens"].size(), 4U);
  EXPECT_EQ(logprobs["token_logprobs"], json({nullptr, -0.5, -0.5, -0.5}));
  EXPECT_TRUE(logprobs["top_logprobs"][0].is_null());
  EXPECT_EQ(logprobs["top_logprobs"][3], json({{"o", -0.5}}));
  EXPECT_EQ(logprobs["text_offset"], json({0, 1, 1, 2}));
}

TEST_F(ApiServerTest, EvaluatesAPromptWithoutGenerating) {
  Start();
  const json body = json::parse(
      Post(kText, {{"model", "small"}, {"prompt", "ab"}, {"echo", true}, {"max_tokens", 0}}).body);
  EXPECT_EQ(body["choices"][0]["text"], "ab");
  EXPECT_EQ(body["usage"]["completion_tokens"], 0);
}

TEST_F(ApiServerTest, ReturnsTokenIds) {
  Start();
  json request = {{"model", "small"}, {"prompt", "a"}, {"return_token_ids", true}};
  json body = json::parse(Post(kText, request).body);
  EXPECT_EQ(body["choices"][0]["prompt_token_ids"], json({256, 97}));
  EXPECT_EQ(body["choices"][0]["token_ids"], json({'o', 'k', 257}));
  request["stream"] = true;
  std::vector<int> ids;
  size_t prompts = 0;
  for (const json& event : Events(Post(kText, request))) {
    prompts += event["choices"][0].contains("prompt_token_ids");
    for (const json& id : event["choices"][0]["token_ids"]) ids.push_back(id);
  }
  EXPECT_EQ(prompts, 1U);
  EXPECT_EQ(ids, (std::vector<int>{'o', 'k', 257}));
  json chat = Chat("q");
  chat["return_token_ids"] = true;
  body = json::parse(Post(kChat, chat).body);
  EXPECT_EQ(body["prompt_token_ids"].get<std::vector<TokenId>>(), big_.last_request().prompt);
  EXPECT_EQ(body["choices"][0]["token_ids"].size(), 4U);
}

TEST_F(ApiServerTest, StopStringsEndTheAnswerAndTheWork) {
  Start();
  big_.SetScript(BytesOf("one two three "));
  big_.SetEndless(true);
  json request = Chat("q");
  request["stop"] = "ee o";
  json body = json::parse(Post(kChat, request).body);
  EXPECT_EQ(body["choices"][0]["message"]["content"], "one two thr");
  EXPECT_EQ(body["choices"][0]["finish_reason"], "stop");
  EXPECT_EQ(body["usage"]["completion_tokens"], 15);
  EXPECT_EQ(big_.cancelled(), 1);
  request["stop"] = {"nothing", "two"};
  request["stream"] = true;
  std::string text;
  for (const json& event : Events(Post(kChat, request))) {
    text += event["choices"][0]["delta"].value("content", "");
  }
  EXPECT_EQ(text, "one ");
  EXPECT_TRUE(big_.WaitIdle());
}

TEST_F(ApiServerTest, NeverCutsACharacterInTwo) {
  Start();
  big_.SetScript(BytesOf("aü€😀"));
  json request = Chat("q");
  request["stream"] = true;
  std::vector<std::string> parts;
  for (const json& event : Events(Post(kChat, request))) {
    const std::string part = event["choices"][0]["delta"].value("content", "");
    if (!part.empty()) parts.push_back(part);
  }
  EXPECT_EQ(parts, (std::vector<std::string>{"a", "ü", "€", "😀"}));
  big_.SetScript(BytesOf("a\xE2\x82"));  // ends in the middle
  request["stream"] = false;
  EXPECT_EQ(json::parse(Post(kChat, request).body)["choices"][0]["message"]["content"], "a\uFFFD");
}

TEST_F(ApiServerTest, PassesSamplingOn) {
  Start();
  const json fields = json::parse(R"({"temperature": 0.5, "top_k": 7, "top_p": 0.25, "min_p": 0.125,
      "repetition_penalty": 1.5, "repeat_last_n": 12, "presence_penalty": -1, "frequency_penalty": 2,
      "seed": -5, "logit_bias": {"98": -100, "97": 1.5}, "max_completion_tokens": 3,
      "ignore_eos": true, "user": "ignored", "unknown_field": [1]})");
  json request = Chat("q");
  request.update(fields);
  ASSERT_EQ(Post(kChat, request).status, 200);
  const GenerationRequest got = big_.last_request();
  EXPECT_EQ(got.sampling.temperature, 0.5F);
  EXPECT_EQ(got.sampling.top_k, 7);
  EXPECT_EQ(got.sampling.top_p, 0.25F);
  EXPECT_EQ(got.sampling.min_p, 0.125F);
  EXPECT_EQ(got.sampling.repetition_penalty, 1.5F);
  EXPECT_EQ(got.sampling.repeat_last_n, 12);
  EXPECT_EQ(got.sampling.presence_penalty, -1.0F);
  EXPECT_EQ(got.sampling.frequency_penalty, 2.0F);
  EXPECT_EQ(got.sampling.seed, static_cast<uint64_t>(-5));
  ASSERT_EQ(got.sampling.logit_bias.size(), 2U);
  EXPECT_EQ(got.sampling.logit_bias[0].token_id, 97);
  EXPECT_EQ(got.sampling.logit_bias[0].bias, 1.5F);
  EXPECT_EQ(got.max_tokens, 3);
  EXPECT_TRUE(got.ignore_eos);
  request.erase("max_completion_tokens");
  request.erase("seed");
  ASSERT_EQ(Post(kChat, request).status, 200);
  const GenerationRequest other = big_.last_request();
  EXPECT_EQ(other.max_tokens, kContext - static_cast<int>(other.prompt.size()));
  ASSERT_EQ(Post(kChat, request).status, 200);
  EXPECT_NE(other.sampling.seed, big_.last_request().sampling.seed);
}

TEST_F(ApiServerTest, NamesTheFieldThatIsWrong) {
  Start();
  const std::vector<std::pair<const char*, json>> wrong = {
      {"temperature", 2.5},
      {"temperature", "warm"},
      {"top_p", 0},
      {"top_p", 1.5},
      {"top_k", -2},
      {"top_k", 1.5},
      {"min_p", -0.1},
      {"n", 0},
      {"n", 129},
      {"max_tokens", 0},
      {"max_tokens", "many"},
      {"max_completion_tokens", -1},
      {"presence_penalty", 3},
      {"frequency_penalty", -3},
      {"repetition_penalty", 0},
      {"stream", "yes"},
      {"stop", 5},
      {"stop", json::array({""})},
      {"seed", 1.5},
      {"seed", 1e300},
      {"logit_bias", {{"x", 1}}},
      {"logit_bias", {{"5", 101}}},
      {"logit_bias", {{"99999", 1}}},
      {"top_logprobs", 21},
      {"top_logprobs", 1},
      {"stream_options", 1},
      {"response_format", {{"type", "json_object"}}},
      {"tool_choice", "required"},
      {"tools", 1},
      {"messages", json::array()},
      {"messages", 1},
      {"chat_template_kwargs", 1},
      {"reasoning_effort", 1},
      {"logit_bias", {{"5", 1}, {"05", 1}}}};
  for (const auto& [field, value] : wrong) {
    json request = Chat("q");
    request[field] = value;
    ExpectError(kChat, request, 400, field, field);
  }
  const auto with_message = [](const char* message) {
    return json{{"messages", json::array({json::parse(message)})}};
  };
  ExpectError(kChat, with_message(R"({"role": "wizard", "content": "x"})"), 400, "messages[0].role",
              "assistant or tool");
  ExpectError(kChat, with_message(R"({"role": "user"})"), 400, "messages[0].content", "missing");
  ExpectError(kChat, with_message(R"({"role": "user", "content": [{"type": "image_url"}]})"), 400,
              "messages[0].content", "text");
  ExpectError(kChat, with_message(R"({"role": "assistant", "tool_calls": [{"function": {"name": "f",
                               "arguments": "["}}]})"),
              400, "messages[0].tool_calls", "JSON object");
  ExpectError(kChat, with_message(R"({"role": "user", "content": "loop"})"), 400, "messages",
              "no loops");
  ExpectError(kText, {{"model", "small"}}, 400, "prompt", "missing");
  for (const json& prompt : {json(1), json::array(), json::array({1, "a"}), json({-1}),
                             json({1, 99999}), json::array({json::array()}), json({1.5})}) {
    ExpectError(kText, {{"model", "small"}, {"prompt", prompt}}, 400, "prompt", "");
  }
  ExpectError(kText, {{"model", "small"}, {"prompt", "a"}, {"logprobs", true}}, 400, "logprobs",
              "integer");
  ExpectError(kChat, {{"model", "small"}, {"messages", {{{"role", "user"}, {"content", "x"}}}}},
              400, "messages", "no chat template");
  EXPECT_EQ(big_.submitted() + small_.submitted(), 0);
}

TEST_F(ApiServerTest, RefusesAPromptBeyondTheContextBeforeAnyHeader) {
  Start();
  json request = Chat(std::string(kContext, 'x'));
  request["stream"] = true;
  ExpectError(kChat, request, 400, "messages", "the context holds 4096");
  const HttpTestReply reply =
      Post(kText, {{"model", "small"}, {"prompt", std::string(kContext - 1, 'x')}});
  EXPECT_EQ(reply.status, 400);
  EXPECT_EQ(json::parse(reply.body)["error"]["code"], "context_length_exceeded");
  EXPECT_EQ(Post(kText, {{"model", "small"}, {"prompt", std::string(kContext - 2, 'x')}}).status,
            200);
}

TEST_F(ApiServerTest, ListsWhatExistsForAnUnknownModel) {
  Start();
  json request = Chat("q");
  request["model"] = "gpt-5";
  ExpectError(kChat, request, 404, "model", "big, small");
  request["model"] = "main";
  EXPECT_EQ(Post(kChat, request).status, 200);
  request.erase("model");
  EXPECT_EQ(Post(kChat, request).status, 200);
  EXPECT_EQ(big_.submitted(), 2);
  EXPECT_EQ(Get("/v1/models/gpt-5").status, 404);
  ExpectError("/v1/embeddings", json::object(), 404, nullptr, "there is no POST /v1/embeddings");
}

TEST_F(ApiServerTest, DescribesModels) {
  Start();
  const json list = json::parse(Get("/v1/models").body);
  EXPECT_EQ(list["object"], "list");
  ASSERT_EQ(list["data"].size(), 2U);
  EXPECT_EQ(list["data"][0]["id"], "big");
  EXPECT_EQ(list["data"][0]["context_length"], kContext);
  EXPECT_EQ(list["data"][0]["parameters"], 22290000);
  EXPECT_EQ(list["data"][0]["size_bytes"], 14421376);
  EXPECT_EQ(list["data"][0]["state"], "ready");
  EXPECT_EQ(list["data"][1]["role"], "sidecar");
  EXPECT_EQ(json::parse(Get("/v1/models/%73mall").body)["id"], "small");
}

TEST_F(ApiServerTest, TellsAFullQueueToComeBack) {
  Start();
  big_.SetQueueMax(0);
  json request = Chat("q");
  request["stream"] = true;
  const HttpTestReply reply = Post(kChat, request);
  EXPECT_EQ(reply.status, 429);
  EXPECT_EQ(reply.headers.at("retry-after"), "7");
  EXPECT_EQ(json::parse(reply.body)["error"]["type"], "rate_limit_error");
}

TEST_F(ApiServerTest, ReportsFailuresBeforeAndInsideAStream) {
  Start();
  big_.SetFailure(absl::UnavailableError("worker 2 is gone"), 2);
  json request = Chat("q");
  ExpectError(kChat, request, 503, nullptr, "worker 2 is gone");
  request["stream"] = true;
  const std::vector<json> events = Events(Post(kChat, request));
  EXPECT_EQ(events.back()["error"]["message"], "worker 2 is gone");
}

TEST_F(ApiServerTest, StatesFollowTheDeployments) {
  Start();
  EXPECT_EQ(Get("/health").status, 200);
  EXPECT_EQ(Get("/ready").status, 200);
  small_.SetState(DeploymentState::kLoading);
  EXPECT_EQ(Get("/health").status, 200);
  const HttpTestReply ready = Get("/ready");
  EXPECT_EQ(ready.status, 503);
  EXPECT_EQ(json::parse(ready.body)["models"]["small"]["state"], "loading");
  const HttpTestReply reply = Post(kText, {{"model", "small"}, {"prompt", "a"}});
  EXPECT_EQ(reply.status, 503);
  EXPECT_TRUE(reply.headers.contains("retry-after"));
  EXPECT_EQ(Post(kChat, Chat("q")).status, 200);
  small_.SetState(DeploymentState::kFailed);
  EXPECT_EQ(Get("/health").status, 503);
  small_.SetState(DeploymentState::kRecovering);
  EXPECT_EQ(Get("/health").status, 200);
  EXPECT_EQ(Get("/ready").status, 503);
  EXPECT_EQ(Post(kText, {{"model", "small"}, {"prompt", "a"}}).status, 200);
}

TEST_F(ApiServerTest, TokenizesAndBack) {
  Start();
  json body = json::parse(Post("/tokenize", {{"model", "small"}, {"content", "aü<eos>"}}).body);
  EXPECT_EQ(body["tokens"], json({256, 97, 0xC3, 0xBC, 257}));
  EXPECT_EQ(body["count"], 5);
  body = json::parse(Post("/tokenize", {{"model", "small"},
                                        {"prompt", "<eos>"},
                                        {"add_special", false},
                                        {"parse_special", false}})
                         .body);
  EXPECT_EQ(body["count"], 5);
  body = json::parse(
      Post("/detokenize", {{"model", "small"}, {"tokens", {97, 0xC3, 0xBC, 257}}}).body);
  EXPECT_EQ(body["content"], "aü<eos>");
  ExpectError("/detokenize", {{"tokens", {-1}}}, 400, "tokens", "from 0 to");
  ExpectError("/tokenize", json::object(), 400, "content", "missing");
}

TEST_F(ApiServerTest, CountsForPrometheus) {
  Start();
  ASSERT_EQ(Post(kChat, Chat("q")).status, 200);
  Get("/nowhere");
  const HttpTestReply reply = Get("/metrics");
  EXPECT_THAT(reply.headers.at("content-type"), HasSubstr("text/plain"));
  EXPECT_THAT(reply.body, HasSubstr("packtrain_completion_tokens_total{model=\"big\"} 4"));
  EXPECT_THAT(reply.body, HasSubstr("path=\"/v1/chat/completions\""));
  EXPECT_THAT(reply.body, HasSubstr("path=\"other\""));
  EXPECT_THAT(reply.body, Not(HasSubstr("nowhere")));
}

TEST_F(ApiServerTest, ShowsThePlanIfThereIsOne) {
  Start();
  EXPECT_EQ(Get("/plan").status, 404);
  ApiServerOptions options;
  options.plan = [] { return std::string("{\"rig\": \"r\"}"); };
  Start(options);
  const HttpTestReply reply = Get("/plan");
  EXPECT_EQ(reply.status, 200);
  EXPECT_EQ(reply.body, "{\"rig\": \"r\"}");
}

TEST_F(ApiServerTest, AsksForAKeyWhereKeysAreSet) {
  ApiServerOptions options;
  options.api_keys = {"secret-1", "secret-2"};
  Start(options);
  HttpTestClient client(port());
  EXPECT_EQ(client.Get("/v1/models").status, 401);
  EXPECT_EQ(client.Get("/v1/models", "Authorization: Bearer secret-3\r\n").status, 401);
  EXPECT_EQ(client.Get("/v1/models", "Authorization: Basic secret-2\r\n").status, 401);
  EXPECT_EQ(client.Get("/v1/models", "Authorization: Bearer secret-2\r\n").status, 200);
  EXPECT_EQ(client.Get("/health").status, 200);
}

TEST_F(ApiServerTest, RefusesToServeTheWorldWithoutKeys) {
  ApiServerOptions options;
  options.http.address = "0.0.0.0";
  const auto registry = std::make_shared<prometheus::Registry>();
  EXPECT_EQ(ApiServer::Start(options, {&big_}, registry).status().code(),
            absl::StatusCode::kFailedPrecondition);
  options.api_keys = {"k"};
  EXPECT_TRUE(ApiServer::Start(options, {&big_}, registry).ok());
  options.http.address = "not-an-address";
  EXPECT_EQ(ApiServer::Start(options, {&big_}, registry).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(ApiServer::Start({}, {&big_, &big_}, registry).status().code(),
            absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace packtrain

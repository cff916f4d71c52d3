#include "coordinator/api/api_server.h"

#include <openssl/crypto.h>

#include <boost/asio/ip/address.hpp>
#include <functional>
#include <map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "coordinator/api/api_error.h"
#include "coordinator/api/api_metrics.h"
#include "coordinator/api/bounded_pool.h"
#include "coordinator/api/deployment_table.h"
#include "coordinator/api/generation.h"
#include "coordinator/api/request_preparer.h"
#include "coordinator/tokenizer/chat_template_host.h"

namespace packtrain {
namespace {

constexpr std::string_view kModelPrefix = "/v1/models/";

using ExchangePtr = std::shared_ptr<HttpExchange>;

absl::Status CheckAddress(const ApiServerOptions& options) {
  boost::system::error_code error;
  const auto address = boost::asio::ip::make_address(options.http.address, error);
  if (error || address.is_loopback() || !options.api_keys.empty()) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat("listening on ", options.http.address,
                   " would serve anybody who can reach it; set API keys, or listen on 127.0.0.1"));
}

// Takes the same time for every wrong key of one length.
bool SameKey(const std::string& a, std::string_view b) {
  return a.size() == b.size() && CRYPTO_memcmp(a.data(), b.data(), a.size()) == 0;
}

// Ids arrive percent-encoded when they contain a slash, as client libraries do it.
std::string PercentDecode(std::string_view text) {
  std::string out;
  const auto digit = [](char c) {
    if (c >= '0' && c <= '9') return c - '0';
    const char lower = static_cast<char>(c | 0x20);
    return lower >= 'a' && lower <= 'f' ? lower - 'a' + 10 : -1;
  };
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '%' && i + 2 < text.size() && digit(text[i + 1]) >= 0 &&
        digit(text[i + 2]) >= 0) {
      out += static_cast<char>(digit(text[i + 1]) * 16 + digit(text[i + 2]));
      i += 2;
    } else {
      out += text[i];
    }
  }
  return out;
}

}  // namespace

struct ApiServer::Impl {
  Impl(ApiServerOptions server_options, DeploymentTable table,
       std::shared_ptr<prometheus::Registry> registry)
      : options(std::move(server_options)),
        deployments(std::move(table)),
        metrics(std::move(registry)),
        pool(2, options.preparing_max, options.preparing_bytes_max) {
    for (const Deployment* deployment : deployments.all()) {
      chat_pools.try_emplace(deployment, ChatTemplateHost::kChildrenMax, options.preparing_max,
                             options.preparing_bytes_max);
    }
  }

  void Handle(const ExchangePtr& exchange);
  bool Authorized(const HttpRequest& request) const;
  bool HandleGet(const ExchangePtr& exchange);
  bool HandlePost(const ExchangePtr& exchange);
  void Reply(const ExchangePtr& exchange, HttpReply reply);
  void ReplyError(const ExchangePtr& exchange, const absl::Status& status) {
    Reply(exchange, ErrorReply(status));
  }
  // Runs `work` in the pool; refuses if too much waits already.
  void Prepare(const ExchangePtr& exchange, std::function<void(const std::string& body)> work);
  // On a thread of a pool; what they reply is sent on the I/O thread.
  void PostError(const ExchangePtr& exchange, absl::Status status) {
    exchange->Post([this, exchange, status = std::move(status)] { ReplyError(exchange, status); });
  }
  void PrepareAndStart(const ExchangePtr& exchange, CompletionKind kind, CompletionTarget target);
  void PrepareChat(const ExchangePtr& exchange, CompletionTarget target, size_t bytes);

  void StartCompletion(const ExchangePtr& exchange, CompletionKind kind);
  using BodyToReply = absl::StatusOr<std::string> (*)(std::string_view, const DeploymentTable&);
  void ReplyWith(const ExchangePtr& exchange, BodyToReply function);

  const ApiServerOptions options;
  const DeploymentTable deployments;
  ApiMetrics metrics;
  BoundedPool pool;
  // Chats render in pools of their own: a template that runs into its deadline holds up chats of
  // its own model at most.
  std::map<const Deployment*, BoundedPool> chat_pools;
  std::unique_ptr<HttpServer> http;
};

bool ApiServer::Impl::Authorized(const HttpRequest& request) const {
  if (options.api_keys.empty() || request.path == "/health" || request.path == "/ready") {
    return true;
  }
  std::string_view key = request.authorization;
  constexpr std::string_view kBearer = "Bearer ";
  if (!key.starts_with(kBearer)) return false;
  key.remove_prefix(kBearer.size());
  bool found = false;
  for (const std::string& known : options.api_keys) found = SameKey(known, key) || found;
  return found;
}

void ApiServer::Impl::Reply(const ExchangePtr& exchange, HttpReply reply) {
  metrics.CountReply(exchange->request().path, reply.status);
  exchange->Reply(std::move(reply));
}

void ApiServer::Impl::Handle(const ExchangePtr& exchange) {
  const HttpRequest& request = exchange->request();
  if (!Authorized(request)) {
    return ReplyError(exchange, ApiStatus(absl::StatusCode::kUnauthenticated, "",
                                          "a valid API key is needed: Authorization: Bearer <key>",
                                          "invalid_api_key"));
  }
  const bool is_get = request.method == "GET" || request.method == "HEAD";
  if (is_get && HandleGet(exchange)) return;
  if (request.method == "POST" && HandlePost(exchange)) return;
  ReplyError(exchange, ApiStatus(absl::StatusCode::kNotFound, "",
                                 absl::StrCat("there is no ", request.method.substr(0, 20), " ",
                                              request.path.substr(0, 200)),
                                 "unknown_url"));
}

bool ApiServer::Impl::HandleGet(const ExchangePtr& exchange) {
  const std::string& path = exchange->request().path;
  if (path == "/health") {
    const bool healthy = deployments.Healthy();
    Reply(exchange, {.status = healthy ? 200 : 503,
                     .body = deployments.StatusJson(healthy ? "ok" : "failed")});
  } else if (path == "/ready") {
    const bool ready = deployments.Ready();
    Reply(exchange, {.status = ready ? 200 : 503,
                     .body = deployments.StatusJson(ready ? "ready" : "not ready")});
  } else if (path == "/metrics") {
    metrics.SetConnections(http->connections());
    for (const Deployment* deployment : deployments.all()) {
      metrics.SetLoad(deployment->info().name, deployment->load());
    }
    Reply(exchange, {.content_type = "text/plain; version=0.0.4; charset=utf-8",
                     .body = metrics.Serialize()});
  } else if (path == "/plan" && options.plan) {
    Reply(exchange, {.body = options.plan()});
  } else if (path == "/v1/models") {
    Reply(exchange, {.body = deployments.ModelsJson()});
  } else if (path.starts_with(kModelPrefix) && path.size() > kModelPrefix.size()) {
    absl::StatusOr<std::string> body =
        deployments.ModelJson(PercentDecode(path.substr(kModelPrefix.size())));
    if (!body.ok()) {
      ReplyError(exchange, body.status());
    } else {
      Reply(exchange, {.body = *std::move(body)});
    }
  } else {
    return false;
  }
  return true;
}

bool ApiServer::Impl::HandlePost(const ExchangePtr& exchange) {
  const std::string& path = exchange->request().path;
  if (path == "/v1/chat/completions") {
    StartCompletion(exchange, CompletionKind::kChat);
  } else if (path == "/v1/completions") {
    StartCompletion(exchange, CompletionKind::kText);
  } else if (path == "/tokenize") {
    ReplyWith(exchange, &Tokenize);
  } else if (path == "/detokenize") {
    ReplyWith(exchange, &Detokenize);
  } else {
    return false;
  }
  return true;
}

void ApiServer::Impl::PrepareAndStart(const ExchangePtr& exchange, CompletionKind kind,
                                      CompletionTarget target) {
  absl::StatusOr<PreparedCompletion> prepared = PrepareCompletion(kind, std::move(target));
  if (!prepared.ok()) return PostError(exchange, prepared.status());
  auto generation =
      std::make_shared<Generation>(exchange, prepared->deployment, &metrics,
                                   std::move(prepared->request), prepared->starts_in_reasoning);
  // The client may have gone while this waited; Start finds that out.
  exchange->Post([generation] { generation->Start(); });
}

void ApiServer::Impl::PrepareChat(const ExchangePtr& exchange, CompletionTarget target,
                                  size_t bytes) {
  const Deployment* deployment = target.deployment;
  const bool taken =
      chat_pools.at(deployment)
          .Post(bytes,
                [this, exchange, shared = std::make_shared<CompletionTarget>(std::move(target))] {
                  PrepareAndStart(exchange, CompletionKind::kChat, std::move(*shared));
                });
  if (!taken) {
    PostError(exchange, absl::ResourceExhaustedError(
                            absl::StrCat("too many chats are being prepared for the model \"",
                                         deployment->info().name, "\"; try again")));
  }
}

void ApiServer::Impl::StartCompletion(const ExchangePtr& exchange, CompletionKind kind) {
  Prepare(exchange, [this, exchange, kind](const std::string& body) {
    absl::StatusOr<CompletionTarget> target = ParseTarget(body, deployments);
    if (!target.ok()) return PostError(exchange, target.status());
    if (kind == CompletionKind::kChat)
      return PrepareChat(exchange, *std::move(target), body.size());
    PrepareAndStart(exchange, kind, *std::move(target));
  });
}

void ApiServer::Impl::ReplyWith(const ExchangePtr& exchange, BodyToReply function) {
  Prepare(exchange, [this, exchange, function](const std::string& body) {
    absl::StatusOr<std::string> reply = function(body, deployments);
    if (!reply.ok()) return PostError(exchange, reply.status());
    exchange->Post([this, exchange, text = *std::move(reply)] { Reply(exchange, {.body = text}); });
  });
}

void ApiServer::Impl::Prepare(const ExchangePtr& exchange,
                              std::function<void(const std::string& body)> work) {
  const bool taken = pool.Post(exchange->request().body.size(), [exchange, work = std::move(work)] {
    work(std::exchange(exchange->request().body, ""));
  });
  if (!taken) {
    ReplyError(exchange,
               absl::ResourceExhaustedError("too many requests are being prepared; try again"));
  }
}

absl::StatusOr<std::unique_ptr<ApiServer>> ApiServer::Start(
    ApiServerOptions options, std::vector<Deployment*> deployments,
    std::shared_ptr<prometheus::Registry> registry) {
  RETURN_IF_ERROR(CheckAddress(options));
  ASSIGN_OR_RETURN(DeploymentTable table, DeploymentTable::Create(std::move(deployments)));
  auto impl = std::make_unique<Impl>(std::move(options), std::move(table), std::move(registry));
  Impl* state = impl.get();
  ASSIGN_OR_RETURN(impl->http,
                   HttpServer::Create(state->options.http,
                                      [state](ExchangePtr exchange) { state->Handle(exchange); }));
  impl->http->Start();
  return std::unique_ptr<ApiServer>(new ApiServer(std::move(impl)));
}

ApiServer::ApiServer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

ApiServer::~ApiServer() {
  impl_->http->Stop();
  // What the pools still hold posts to an I/O thread that has ended: dropped with it.
  impl_->pool.Stop();
  for (auto& [deployment, pool] : impl_->chat_pools) pool.Stop();
}

uint16_t ApiServer::port() const { return impl_->http->port(); }

size_t ApiServer::connections() const { return impl_->http->connections(); }

}  // namespace packtrain

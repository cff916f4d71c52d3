#include "coordinator/api/api_server.h"

#include <openssl/crypto.h>

#include <atomic>
#include <boost/asio/ip/address.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/thread_pool.hpp>
#include <functional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "coordinator/api/api_error.h"
#include "coordinator/api/api_metrics.h"
#include "coordinator/api/deployment_table.h"
#include "coordinator/api/generation.h"
#include "coordinator/api/request_preparer.h"

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
        // Two pools: a chat template that runs into its deadline holds up other chats at most.
        chat_pool(2),
        text_pool(2) {}

  void Handle(const ExchangePtr& exchange);
  bool Authorized(const HttpRequest& request) const;
  bool HandleGet(const ExchangePtr& exchange);
  bool HandlePost(const ExchangePtr& exchange);
  void Reply(const ExchangePtr& exchange, HttpReply reply);
  void ReplyError(const ExchangePtr& exchange, const absl::Status& status) {
    Reply(exchange, ErrorReply(status));
  }
  // Runs `work` in `pool` and what it returns on the I/O thread; refuses if too much waits already.
  void Prepare(const ExchangePtr& exchange, boost::asio::thread_pool* pool,
               std::function<std::function<void()>(const std::string& body)> work);
  void StartCompletion(const ExchangePtr& exchange, CompletionKind kind);
  using BodyToReply = absl::StatusOr<std::string> (*)(std::string_view, const DeploymentTable&);
  void ReplyWith(const ExchangePtr& exchange, BodyToReply function);

  const ApiServerOptions options;
  const DeploymentTable deployments;
  ApiMetrics metrics;
  std::atomic<size_t> preparing_bytes = 0;
  std::atomic<int> preparing = 0;
  boost::asio::thread_pool chat_pool;
  boost::asio::thread_pool text_pool;
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

void ApiServer::Impl::Prepare(const ExchangePtr& exchange, boost::asio::thread_pool* pool,
                              std::function<std::function<void()>(const std::string&)> work) {
  const size_t bytes = exchange->request().body.size();
  if (preparing >= options.preparing_max ||
      (preparing > 0 && preparing_bytes + bytes > options.preparing_bytes_max)) {
    return ReplyError(
        exchange, absl::ResourceExhaustedError("too many requests are being prepared; try again"));
  }
  ++preparing;
  preparing_bytes += bytes;
  boost::asio::post(*pool, [this, exchange, bytes, work = std::move(work)] {
    // The client may have gone while this waited; then `done` finds that out.
    std::function<void()> done = work(std::exchange(exchange->request().body, ""));
    --preparing;
    preparing_bytes -= bytes;
    exchange->Post(std::move(done));
  });
}

void ApiServer::Impl::StartCompletion(const ExchangePtr& exchange, CompletionKind kind) {
  auto* pool = kind == CompletionKind::kChat ? &chat_pool : &text_pool;
  Prepare(exchange, pool, [this, exchange, kind](const std::string& body) -> std::function<void()> {
    absl::StatusOr<PreparedCompletion> prepared = PrepareCompletion(kind, body, deployments);
    if (!prepared.ok()) {
      return [this, exchange, status = prepared.status()] { ReplyError(exchange, status); };
    }
    auto generation =
        std::make_shared<Generation>(exchange, prepared->deployment, &metrics,
                                     std::move(prepared->request), prepared->starts_in_reasoning);
    return [generation] { generation->Start(); };
  });
}

void ApiServer::Impl::ReplyWith(const ExchangePtr& exchange, BodyToReply function) {
  Prepare(exchange, &text_pool,
          [this, exchange, function](const std::string& body) -> std::function<void()> {
            absl::StatusOr<std::string> reply = function(body, deployments);
            if (!reply.ok()) {
              return [this, exchange, status = reply.status()] { ReplyError(exchange, status); };
            }
            return [this, exchange, text = *std::move(reply)] { Reply(exchange, {.body = text}); };
          });
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
  impl_->chat_pool.stop();
  impl_->text_pool.stop();
  impl_->chat_pool.join();
  impl_->text_pool.join();
}

uint16_t ApiServer::port() const { return impl_->http->port(); }

size_t ApiServer::connections() const { return impl_->http->connections(); }

}  // namespace packtrain

#include "coordinator/api/http_server.h"

#include <atomic>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <thread>
#include <unordered_map>

#include "absl/strings/str_cat.h"
#include "coordinator/api/http_connection.h"

namespace packtrain {

namespace asio = boost::asio;
using asio::ip::tcp;
using boost::system::error_code;

// --- HttpExchange --------------------------------------------------------------------------------

HttpExchange::HttpExchange(HttpRequest request, std::weak_ptr<HttpConnection> connection,
                           std::function<void(std::function<void()>)> post)
    : request_(std::move(request)), connection_(std::move(connection)), post_(std::move(post)) {}

void HttpExchange::Reply(HttpReply reply) {
  on_abort_ = nullptr;
  if (auto connection = connection_.lock(); connection != nullptr && !aborted_) {
    connection->Reply(reply);
  }
}

void HttpExchange::StartStream(std::string_view content_type, std::string ping) {
  if (auto connection = connection_.lock(); connection != nullptr && !aborted_) {
    connection->StartStream(content_type, std::move(ping));
  }
}

void HttpExchange::Write(std::string_view data) {
  if (auto connection = connection_.lock(); connection != nullptr && !aborted_) {
    connection->WriteStream(data);
  }
}

void HttpExchange::EndStream() {
  on_abort_ = nullptr;
  if (auto connection = connection_.lock(); connection != nullptr && !aborted_) {
    connection->EndStream();
  }
}

void HttpExchange::Abort() {
  aborted_ = true;
  if (on_abort_) std::exchange(on_abort_, nullptr)();
}

// --- HttpServer ----------------------------------------------------------------------------------

struct HttpServer::Impl {
  Impl(HttpServerOptions server_options, HttpHandler request_handler)
      : options(std::move(server_options)),
        handler(std::move(request_handler)),
        io(1),
        work(asio::make_work_guard(io)),
        acceptor(io),
        retry(io) {
    owner.options = &options;
    owner.handler = &handler;
    owner.post = [this](std::function<void()> task) { asio::post(io, std::move(task)); };
    owner.closed = [this](HttpConnection* connection) {
      connections.erase(connection);
      open = connections.size();
    };
  }

  absl::Status Listen();
  void Accept();
  void OnAccept(error_code error, tcp::socket socket);

  const HttpServerOptions options;
  const HttpHandler handler;
  asio::io_context io;
  asio::executor_work_guard<asio::io_context::executor_type> work;
  tcp::acceptor acceptor;
  asio::steady_timer retry;
  HttpConnectionOwner owner;
  std::unordered_map<HttpConnection*, std::shared_ptr<HttpConnection>> connections;
  std::atomic<size_t> open = 0;
  uint16_t bound_port = 0;
  std::thread thread;
};

absl::Status HttpServer::Impl::Listen() {
  error_code error;
  const auto address = asio::ip::make_address(options.address, error);
  if (error) {
    return absl::InvalidArgumentError(
        absl::StrCat("listen address \"", options.address, "\" is not a numeric IP address"));
  }
  const tcp::endpoint endpoint(address, options.port);
  acceptor.open(endpoint.protocol(), error);
  if (!error) acceptor.set_option(tcp::acceptor::reuse_address(true), error);
  if (!error) acceptor.bind(endpoint, error);
  if (!error) acceptor.listen(asio::socket_base::max_listen_connections, error);
  if (error) {
    return absl::UnavailableError(absl::StrCat("cannot listen on ", options.address, ":",
                                               options.port, ": ", error.message()));
  }
  bound_port = acceptor.local_endpoint(error).port();
  return absl::OkStatus();
}

void HttpServer::Impl::Accept() {
  acceptor.async_accept(
      [this](error_code error, tcp::socket socket) { OnAccept(error, std::move(socket)); });
}

void HttpServer::Impl::OnAccept(error_code error, tcp::socket socket) {
  if (error == asio::error::operation_aborted || !acceptor.is_open()) return;
  if (error) {
    // Out of descriptors, most likely: trying again at once would only spin.
    retry.expires_after(std::chrono::milliseconds(100));
    return retry.async_wait([this](error_code stopped) {
      if (!stopped) Accept();
    });
  }
  if (connections.size() < options.connections_max) {
    auto connection = std::make_shared<HttpConnection>(std::move(socket), &owner);
    connections.emplace(connection.get(), connection);
    open = connections.size();
    connection->Start();
  }
  Accept();
}

absl::StatusOr<std::unique_ptr<HttpServer>> HttpServer::Create(HttpServerOptions options,
                                                               HttpHandler handler) {
  auto impl = std::make_unique<Impl>(std::move(options), std::move(handler));
  if (absl::Status status = impl->Listen(); !status.ok()) return status;
  return std::unique_ptr<HttpServer>(new HttpServer(std::move(impl)));
}

void HttpServer::Start() {
  impl_->Accept();
  impl_->thread = std::thread([state = impl_.get()] { state->io.run(); });
}

HttpServer::HttpServer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

HttpServer::~HttpServer() { Stop(); }

void HttpServer::Stop() {
  if (!impl_->thread.joinable()) return;
  asio::post(impl_->io, [this] {
    error_code ignored;
    impl_->acceptor.close(ignored);
    impl_->retry.cancel(ignored);
    const auto connections = impl_->connections;  // closing one removes it from the original
    for (const auto& [key, connection] : connections) connection->Close();
    impl_->work.reset();
  });
  impl_->thread.join();
}

uint16_t HttpServer::port() const { return impl_->bound_port; }

size_t HttpServer::connections() const { return impl_->open; }

}  // namespace packtrain

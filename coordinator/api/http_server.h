#pragma once

// HTTP/1.1 over plain sockets: one I/O thread, any number of keep-alive connections. Knows nothing
// of what is served. Every limit here bounds what a client can make us hold.

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"

namespace packtrain {

struct HttpServerOptions {
  std::string address = "127.0.0.1";  // numeric
  uint16_t port = 0;                  // 0 takes a free one
  size_t connections_max = 8192;      // beyond it new ones are closed at once
  size_t header_bytes_max = 64 << 10;
  size_t body_bytes_max = 16 << 20;                  // of one request
  size_t body_bytes_total_max = 256 << 20;           // of all requests that are being read
  size_t unsent_bytes_max = 4 << 20;                 // beyond it a slow reader is cut off
  std::chrono::milliseconds idle_timeout{75000};     // between requests
  std::chrono::milliseconds request_timeout{60000};  // for a request to arrive whole
  std::chrono::milliseconds write_timeout{60000};    // without one byte being taken
  std::chrono::milliseconds ping_interval{10000};    // of silence in a stream
};

struct HttpRequest {
  std::string method;
  std::string path;  // without the query
  std::string authorization;
  std::string body;
};

struct HttpReply {
  int status = 200;
  std::string content_type = "application/json";
  std::vector<std::pair<std::string, std::string>> headers = {};
  std::string body = {};
};

class HttpConnection;

// One request and its reply: either Reply, or StartStream, Write ..., EndStream. All methods are
// for the I/O thread (where the handler is called) except Post. After the client has gone they do
// nothing.
class HttpExchange {
 public:
  HttpExchange(HttpRequest request, std::weak_ptr<HttpConnection> connection,
               std::function<void(std::function<void()>)> post);

  HttpRequest& request() { return request_; }
  // Runs `work` on the I/O thread. Any thread, as long as the server exists.
  void Post(std::function<void()> work) { post_(std::move(work)); }

  void Reply(HttpReply reply);
  // Sends status and headers at once; from then on `ping` is sent after each silent interval.
  void StartStream(std::string_view content_type, std::string ping);
  void Write(std::string_view data);
  void EndStream();

  // Called once if the client disconnects, reads too slowly or the server stops before the reply
  // is complete.
  void OnAbort(std::function<void()> callback) { on_abort_ = std::move(callback); }
  bool aborted() const { return aborted_; }
  int status() const { return status_; }  // of the reply; 0 before

 private:
  friend class HttpConnection;
  void Abort();

  HttpRequest request_;
  std::weak_ptr<HttpConnection> connection_;
  std::function<void(std::function<void()>)> post_;
  std::function<void()> on_abort_;
  int status_ = 0;
  bool aborted_ = false;
};

using HttpHandler = std::function<void(std::shared_ptr<HttpExchange>)>;

class HttpServer {
 public:
  // Binds. The handler is called on the I/O thread and must not block.
  // Errors: INVALID_ARGUMENT (address), UNAVAILABLE (cannot bind).
  static absl::StatusOr<std::unique_ptr<HttpServer>> Create(HttpServerOptions options,
                                                            HttpHandler handler);
  ~HttpServer();

  // Starts the I/O thread. Call once.
  void Start();
  // Aborts what is in progress, closes everything and joins the thread. Idempotent.
  void Stop();
  uint16_t port() const;
  size_t connections() const;  // open now

 private:
  friend class HttpConnection;
  struct Impl;
  explicit HttpServer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace packtrain

#pragma once

// One client's connection; lives on the I/O thread. Private to http_server.cc and its own file.

#include <array>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/string_body.hpp>
#include <memory>
#include <optional>
#include <string>

#include "coordinator/api/http_server.h"

namespace packtrain {

// What a connection shares with its server. I/O thread only.
struct HttpConnectionOwner {
  const HttpServerOptions* options = nullptr;
  const HttpHandler* handler = nullptr;
  std::function<void(std::function<void()>)> post;
  std::function<void(HttpConnection*)> closed;
  size_t body_bytes = 0;  // of all requests that are being read
};

class HttpConnection : public std::enable_shared_from_this<HttpConnection> {
 public:
  using Clock = std::chrono::steady_clock;

  HttpConnection(boost::asio::ip::tcp::socket socket, HttpConnectionOwner* owner);
  void Start();
  // Drops the connection; the exchange in progress, if any, is aborted.
  void Close();

  // For HttpExchange.
  void Reply(const HttpReply& reply);
  void StartStream(std::string_view content_type, std::string ping);
  void WriteStream(std::string_view data);
  void EndStream();

 private:
  using Parser = boost::beast::http::request_parser<boost::beast::http::string_body>;
  enum class State { kReading, kHandling, kFlushing, kLingering, kClosed };

  void SetState(State state);
  void Read();
  void OnRead(boost::system::error_code error, size_t bytes);
  void Parse();
  bool AccountBody();
  void RefuseRequest(boost::system::error_code error);
  void Dispatch();
  void FinishReply();
  void Send(std::string_view data);
  void WriteSome();
  void OnWritten(boost::system::error_code error, size_t bytes);
  void OnFlushed();
  Clock::time_point NextDeadline() const;
  void ArmTimer();
  void OnTimer();

  boost::asio::ip::tcp::socket socket_;
  boost::asio::steady_timer timer_;
  HttpConnectionOwner* owner_;
  const HttpServerOptions& options_;

  State state_ = State::kReading;
  Clock::time_point state_since_;
  Clock::time_point armed_for_ = Clock::time_point::max();

  std::array<char, 8192> arriving_;  // where the read under way puts its bytes
  boost::beast::flat_buffer in_;     // arrived and not yet parsed
  std::optional<Parser> parser_;
  size_t body_bytes_ = 0;  // our part of owner_->body_bytes
  bool reading_ = false;
  bool continue_sent_ = false;

  std::string out_;      // not yet handed to the socket
  std::string writing_;  // handed to the socket, from written_ on
  size_t written_ = 0;
  bool write_in_progress_ = false;
  Clock::time_point last_write_;  // when bytes were queued last or taken last

  std::shared_ptr<HttpExchange> exchange_;
  bool keep_alive_ = true;
  bool chunked_ = true;
  bool head_only_ = false;
  bool streaming_ = false;
  size_t lingered_bytes_ = 0;
  std::string ping_;
};

}  // namespace packtrain

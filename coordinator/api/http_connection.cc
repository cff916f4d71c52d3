#include "coordinator/api/http_connection.h"

#include <algorithm>
#include <boost/asio/buffer.hpp>
#include <boost/beast/http/error.hpp>
#include <boost/beast/http/status.hpp>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "coordinator/api/api_error.h"

namespace packtrain {
namespace {

namespace beast = boost::beast;
namespace http = boost::beast::http;
using boost::system::error_code;

constexpr std::chrono::seconds kLingerTime(2);
constexpr size_t kLingerBytesMax = 4 << 20;
constexpr size_t kReadAheadBytesMax = 64 << 10;  // pipelined input while a reply is in progress

std::string Head(int status, std::string_view content_type, bool keep_alive) {
  const auto reason = http::obsolete_reason(static_cast<http::status>(status));
  std::string head = absl::StrCat("HTTP/1.1 ", status, " ");
  head.append(reason.data(), reason.size());
  head += "\r\nServer: packtrain\r\nContent-Type: ";
  head += content_type;
  head += keep_alive ? "\r\nConnection: keep-alive\r\n" : "\r\nConnection: close\r\n";
  return head;
}

std::string ToString(beast::string_view text) { return std::string(text.data(), text.size()); }

}  // namespace

HttpConnection::HttpConnection(boost::asio::ip::tcp::socket socket, HttpConnectionOwner* owner)
    : socket_(std::move(socket)),
      timer_(socket_.get_executor()),
      owner_(owner),
      options_(*owner->options),
      state_since_(Clock::now()),
      in_(options_.header_bytes_max + kReadAheadBytesMax + 2 * arriving_.size()) {}

void HttpConnection::Start() {
  error_code ignored;
  socket_.set_option(boost::asio::ip::tcp::no_delay(true), ignored);
  Parse();
}

void HttpConnection::Close() {
  if (state_ == State::kClosed) return;
  state_ = State::kClosed;
  owner_->body_bytes -= std::exchange(body_bytes_, 0);
  error_code ignored;
  socket_.close(ignored);
  timer_.cancel(ignored);
  if (exchange_ != nullptr) std::exchange(exchange_, nullptr)->Abort();
  owner_->closed(this);
}

void HttpConnection::SetState(State state) {
  state_ = state;
  state_since_ = Clock::now();
  ArmTimer();
}

// --- Reading -------------------------------------------------------------------------------------

// There is always one read under way, also while a reply is made: that is how a client's leaving
// is noticed.
void HttpConnection::Read() {
  if (reading_ || state_ == State::kClosed) return;
  if (state_ != State::kReading && in_.size() >= kReadAheadBytesMax) return;
  reading_ = true;
  socket_.async_read_some(
      boost::asio::buffer(arriving_),
      [self = shared_from_this()](error_code error, size_t bytes) { self->OnRead(error, bytes); });
}

void HttpConnection::OnRead(error_code error, size_t bytes) {
  reading_ = false;
  if (state_ == State::kClosed) return;
  if (error) return Close();
  if (state_ == State::kLingering) {
    lingered_bytes_ += bytes;
    return lingered_bytes_ > kLingerBytesMax ? Close() : Read();
  }
  in_.commit(boost::asio::buffer_copy(in_.prepare(bytes), boost::asio::buffer(arriving_, bytes)));
  if (state_ == State::kReading) return Parse();
  Read();
}

void HttpConnection::Parse() {
  if (in_.size() == 0) {
    if (!parser_.has_value()) {
      in_.shrink_to_fit();
      SetState(State::kReading);
    }
    return Read();
  }
  if (!parser_.has_value()) {
    parser_.emplace();
    parser_->header_limit(static_cast<uint32_t>(options_.header_bytes_max));
    parser_->body_limit(options_.body_bytes_max);
    parser_->eager(true);
    continue_sent_ = false;
    SetState(State::kReading);
  }
  error_code error;
  while (in_.size() > 0 && !parser_->is_done()) {
    in_.consume(parser_->put(in_.data(), error));
    if (error) break;
  }
  if (error && error != http::error::need_more) return RefuseRequest(error);
  if (!AccountBody()) return;
  if (parser_->is_done()) return Dispatch();
  if (parser_->is_header_done() && !continue_sent_ &&
      beast::iequals(parser_->get()[http::field::expect], "100-continue")) {
    continue_sent_ = true;
    Send("HTTP/1.1 100 Continue\r\n\r\n");
  }
  Read();
}

// Keeps the total of all bodies bounded. False if the request was refused.
bool HttpConnection::AccountBody() {
  const size_t size = parser_->get().body().size();
  owner_->body_bytes += size - body_bytes_;
  body_bytes_ = size;
  if (owner_->body_bytes <= options_.body_bytes_total_max) return true;
  keep_alive_ = false;
  Reply({.status = 503,
         .headers = {{"Retry-After", "1"}},
         .body = ErrorJson(absl::UnavailableError("too much is being uploaded at once"))});
  return false;
}

void HttpConnection::RefuseRequest(error_code error) {
  keep_alive_ = false;
  int status = 400;
  std::string message = absl::StrCat("not a valid HTTP request: ", error.message());
  if (error == http::error::body_limit) {
    status = 413;
    message =
        absl::StrCat("the body is larger than the limit of ", options_.body_bytes_max, " bytes");
  } else if (error == http::error::header_limit) {
    status = 431;
    message = absl::StrCat("the header is larger than the limit of ", options_.header_bytes_max,
                           " bytes");
  }
  Reply({.status = status, .body = ErrorJson(absl::InvalidArgumentError(message))});
}

void HttpConnection::Dispatch() {
  auto message = parser_->release();
  parser_.reset();
  owner_->body_bytes -= std::exchange(body_bytes_, 0);
  HttpRequest request;
  request.method = ToString(message.method_string());
  request.path = ToString(message.target());
  request.path = request.path.substr(0, request.path.find('?'));
  request.authorization = ToString(message[http::field::authorization]);
  request.body = std::move(message.body());
  keep_alive_ = message.keep_alive();
  chunked_ = message.version() >= 11;
  head_only_ = request.method == "HEAD";
  streaming_ = false;
  SetState(State::kHandling);
  exchange_ = std::make_shared<HttpExchange>(std::move(request), weak_from_this(), owner_->post);
  Read();
  (*owner_->handler)(exchange_);
}

// --- Replying ------------------------------------------------------------------------------------

void HttpConnection::Reply(const HttpReply& reply) {
  std::string text = Head(reply.status, reply.content_type, keep_alive_);
  for (const auto& [name, value] : reply.headers) absl::StrAppend(&text, name, ": ", value, "\r\n");
  absl::StrAppend(&text, "Content-Length: ", reply.body.size(), "\r\n\r\n");
  if (!head_only_) text += reply.body;
  if (exchange_ != nullptr) exchange_->status_ = reply.status;
  SetState(State::kFlushing);
  exchange_.reset();
  Send(text);
}

void HttpConnection::StartStream(std::string_view content_type, std::string ping) {
  if (!chunked_) keep_alive_ = false;  // HTTP/1.0: the end of the connection ends the reply
  std::string text = Head(200, content_type, keep_alive_);
  text += "Cache-Control: no-cache\r\nX-Accel-Buffering: no\r\n";
  text += chunked_ ? "Transfer-Encoding: chunked\r\n\r\n" : "\r\n";
  exchange_->status_ = 200;
  streaming_ = true;
  ping_ = std::move(ping);
  Send(text);
  ArmTimer();
}

void HttpConnection::WriteStream(std::string_view data) {
  if (data.empty()) return;
  if (!chunked_) return Send(data);
  std::string chunk = absl::StrCat(absl::Hex(data.size()), "\r\n");
  chunk += data;
  chunk += "\r\n";
  Send(chunk);
}

void HttpConnection::EndStream() {
  streaming_ = false;
  SetState(State::kFlushing);
  exchange_.reset();
  Send(chunked_ ? "0\r\n\r\n" : "");
}

void HttpConnection::Send(std::string_view data) {
  if (state_ == State::kClosed) return;
  out_ += data;
  if (!write_in_progress_) {
    last_write_ = Clock::now();
    writing_.clear();
    written_ = 0;
    writing_.swap(out_);
    return WriteSome();
  }
  // A whole reply may be larger: it is there already, and nothing is added to it. A stream that
  // its client does not read would grow with every token.
  if (streaming_ && out_.size() > options_.unsent_bytes_max) Close();
}

void HttpConnection::WriteSome() {
  write_in_progress_ = true;
  ArmTimer();
  socket_.async_write_some(
      boost::asio::buffer(writing_.data() + written_, writing_.size() - written_),
      [self = shared_from_this()](error_code error, size_t bytes) {
        self->OnWritten(error, bytes);
      });
}

void HttpConnection::OnWritten(error_code error, size_t bytes) {
  write_in_progress_ = false;
  if (state_ == State::kClosed) return;
  if (error) return Close();
  last_write_ = Clock::now();
  written_ += bytes;
  if (written_ < writing_.size()) return WriteSome();
  writing_.clear();
  written_ = 0;
  if (!out_.empty()) {
    writing_.swap(out_);
    return WriteSome();
  }
  if (state_ == State::kFlushing) return OnFlushed();
  ArmTimer();  // the next ping
}

void HttpConnection::OnFlushed() {
  writing_.shrink_to_fit();
  out_.shrink_to_fit();
  parser_.reset();
  owner_->body_bytes -= std::exchange(body_bytes_, 0);
  if (keep_alive_) {
    SetState(State::kReading);
    return Parse();
  }
  // A socket closed with unread input resets the connection, and the client may lose the reply.
  error_code error;
  socket_.shutdown(boost::asio::ip::tcp::socket::shutdown_send, error);
  if (error) return Close();
  in_.consume(in_.size());
  SetState(State::kLingering);
  Read();
}

// --- Time ----------------------------------------------------------------------------------------

HttpConnection::Clock::time_point HttpConnection::NextDeadline() const {
  auto deadline = Clock::time_point::max();
  if (state_ == State::kReading) {
    deadline =
        state_since_ + (parser_.has_value() ? options_.request_timeout : options_.idle_timeout);
  } else if (state_ == State::kLingering) {
    deadline = state_since_ + kLingerTime;
  }
  if (write_in_progress_) return std::min(deadline, last_write_ + options_.write_timeout);
  if (streaming_) return std::min(deadline, last_write_ + options_.ping_interval);
  return deadline;
}

// The timer is moved only to an earlier time; a later deadline is found out when it fires.
void HttpConnection::ArmTimer() {
  const auto deadline = NextDeadline();
  if (deadline >= armed_for_ || state_ == State::kClosed) return;
  armed_for_ = deadline;
  timer_.expires_at(deadline);
  timer_.async_wait([self = shared_from_this()](error_code error) {
    if (!error) self->OnTimer();
  });
}

void HttpConnection::OnTimer() {
  if (state_ == State::kClosed) return;
  armed_for_ = Clock::time_point::max();
  if (Clock::now() < NextDeadline()) return ArmTimer();
  if (streaming_ && !write_in_progress_) {
    WriteStream(ping_);
    return ArmTimer();
  }
  Close();
}

}  // namespace packtrain

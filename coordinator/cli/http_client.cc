#include "coordinator/cli/http_client.h"

#include <array>
#include <boost/asio/connect.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/beast/core.hpp>
#include <boost/beast/http.hpp>
#include <limits>

#include "absl/strings/str_cat.h"

namespace packtrain {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = boost::beast::http;

absl::Status Broken(const HttpRequest& request, const beast::error_code& error) {
  return absl::UnavailableError(
      absl::StrCat("http://", request.host, ":", request.port, ": ", error.message()));
}

}  // namespace

absl::StatusOr<int> Send(const HttpRequest& request,
                         const std::function<bool(std::string_view)>& on_body) {
  asio::io_context context;
  beast::error_code error;
  const auto endpoints =
      asio::ip::tcp::resolver(context).resolve(request.host, std::to_string(request.port), error);
  if (error) return Broken(request, error);
  asio::ip::tcp::socket socket(context);
  asio::connect(socket, endpoints, error);
  if (error) return Broken(request, error);

  http::request<http::string_body> message(
      request.body.empty() ? http::verb::get : http::verb::post, request.path, 11);
  message.set(http::field::host, absl::StrCat(request.host, ":", request.port));
  if (!request.bearer.empty()) {
    message.set(http::field::authorization, absl::StrCat("Bearer ", request.bearer));
  }
  if (!request.body.empty()) {
    message.set(http::field::content_type, "application/json");
    message.body() = request.body;
    message.prepare_payload();
  }
  http::write(socket, message, error);
  if (error) return Broken(request, error);

  beast::flat_buffer buffer;
  http::response_parser<http::buffer_body> parser;
  // Not boost::none: the distribution's Beast then refuses every body whose length is told.
  parser.body_limit(std::numeric_limits<uint64_t>::max());
  http::read_header(socket, buffer, parser, error);
  if (error) return Broken(request, error);
  const int status = static_cast<int>(parser.get().result_int());
  std::array<char, 8192> piece;
  while (!parser.is_done()) {
    parser.get().body().data = piece.data();
    parser.get().body().size = piece.size();
    http::read_some(socket, buffer, parser, error);
    if (error && error != http::error::need_buffer) return Broken(request, error);
    const size_t bytes = piece.size() - parser.get().body().size;
    if (bytes > 0 && !on_body({piece.data(), bytes})) break;
  }
  return status;
}

}  // namespace packtrain

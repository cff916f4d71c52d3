#include "coordinator/cli/http_client.h"

#include <array>
#include <boost/asio/connect.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/beast/core.hpp>
#include <boost/beast/http.hpp>

#include "absl/strings/str_cat.h"

namespace packtrain {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = boost::beast::http;

absl::Status Broken(const HttpPost& post, const beast::error_code& error) {
  return absl::UnavailableError(
      absl::StrCat("http://", post.host, ":", post.port, ": ", error.message()));
}

}  // namespace

absl::StatusOr<int> Post(const HttpPost& post,
                         const std::function<bool(std::string_view)>& on_body) {
  asio::io_context context;
  beast::error_code error;
  const auto endpoints =
      asio::ip::tcp::resolver(context).resolve(post.host, std::to_string(post.port), error);
  if (error) return Broken(post, error);
  asio::ip::tcp::socket socket(context);
  asio::connect(socket, endpoints, error);
  if (error) return Broken(post, error);

  http::request<http::string_body> request(http::verb::post, post.path, 11);
  request.set(http::field::host, absl::StrCat(post.host, ":", post.port));
  request.set(http::field::content_type, "application/json");
  if (!post.bearer.empty()) {
    request.set(http::field::authorization, absl::StrCat("Bearer ", post.bearer));
  }
  request.body() = post.body;
  request.prepare_payload();
  http::write(socket, request, error);
  if (error) return Broken(post, error);

  beast::flat_buffer buffer;
  http::response_parser<http::buffer_body> parser;
  parser.body_limit(boost::none);
  http::read_header(socket, buffer, parser, error);
  if (error) return Broken(post, error);
  const int status = static_cast<int>(parser.get().result_int());
  std::array<char, 8192> piece;
  while (!parser.is_done()) {
    parser.get().body().data = piece.data();
    parser.get().body().size = piece.size();
    http::read_some(socket, buffer, parser, error);
    if (error && error != http::error::need_buffer) return Broken(post, error);
    const size_t bytes = piece.size() - parser.get().body().size;
    if (bytes > 0 && !on_body({piece.data(), bytes})) break;
  }
  return status;
}

}  // namespace packtrain

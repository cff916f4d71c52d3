#include "coordinator/api/api_error.h"

#include <nlohmann/json.hpp>

#include "absl/strings/cord.h"
#include "absl/strings/str_cat.h"

namespace packtrain {
namespace {

constexpr char kParamPayload[] = "packtrain/param";
constexpr char kCodePayload[] = "packtrain/code";

nlohmann::json Payload(const absl::Status& status, const char* url) {
  const auto payload = status.GetPayload(url);
  return payload.has_value() ? nlohmann::json(std::string(*payload)) : nlohmann::json();
}

const char* ErrorType(int http_status) {
  switch (http_status) {
    case 401:
      return "authentication_error";
    case 429:
      return "rate_limit_error";
    case 503:
      return "service_unavailable_error";
    default:
      return http_status < 500 ? "invalid_request_error" : "server_error";
  }
}

}  // namespace

absl::Status ApiStatus(absl::StatusCode status_code, std::string_view param,
                       std::string_view message, std::string_view code) {
  absl::Status status(status_code, absl::string_view(message.data(), message.size()));
  if (!param.empty()) status.SetPayload(kParamPayload, absl::Cord(std::string(param)));
  if (!code.empty()) status.SetPayload(kCodePayload, absl::Cord(std::string(code)));
  return status;
}

absl::Status FieldError(std::string_view param, std::string_view message, std::string_view code) {
  return ApiStatus(absl::StatusCode::kInvalidArgument, param, message, code);
}

int HttpStatus(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kOk:
      return 200;
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kOutOfRange:
      return 400;
    case absl::StatusCode::kUnauthenticated:
      return 401;
    case absl::StatusCode::kNotFound:
      return 404;
    case absl::StatusCode::kResourceExhausted:
      return 429;
    case absl::StatusCode::kUnavailable:
    case absl::StatusCode::kCancelled:
      return 503;
    default:
      return 500;
  }
}

std::string ErrorJson(const absl::Status& status) {
  const nlohmann::json error = {{"message", std::string(status.message())},
                                {"type", ErrorType(HttpStatus(status))},
                                {"param", Payload(status, kParamPayload)},
                                {"code", Payload(status, kCodePayload)}};
  return nlohmann::json({{"error", error}})
      .dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

HttpReply ErrorReply(const absl::Status& status, int retry_after_s) {
  HttpReply reply{.status = HttpStatus(status), .body = ErrorJson(status)};
  if (reply.status == 429 || reply.status == 503) {
    reply.headers.emplace_back("Retry-After", absl::StrCat(retry_after_s));
  }
  return reply;
}

}  // namespace packtrain

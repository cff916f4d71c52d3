#pragma once

// The little HTTP that a terminal client needs: one request whose reply is read as it comes.

#include <functional>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace packtrain {

struct HttpRequest {
  std::string host;
  int port = 80;
  std::string path;
  std::string bearer;  // empty: no Authorization header
  std::string body;    // JSON, sent by POST; empty: GET
};

// Sends the request and gives the reply's body to `on_body` piece by piece; false from it ends the
// reading. Returns the HTTP status. Errors: UNAVAILABLE (no connection, or it broke).
absl::StatusOr<int> Send(const HttpRequest& request,
                         const std::function<bool(std::string_view)>& on_body);

}  // namespace packtrain

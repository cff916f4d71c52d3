#pragma once

// Errors as absl::Status inside, in OpenAI's shape outside.

#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "coordinator/api/http_server.h"

namespace packtrain {

// An INVALID_ARGUMENT about one field of the request. `param` becomes the error's "param", `code`
// its "code" (may be empty).
absl::Status FieldError(std::string_view param, std::string_view message,
                        std::string_view code = {});
// The same with any status code; `param` may be empty.
absl::Status ApiStatus(absl::StatusCode status_code, std::string_view param,
                       std::string_view message, std::string_view code);

// 400 for INVALID_ARGUMENT and so on; 500 for what is our fault.
int HttpStatus(const absl::Status& status);
// {"error": {"message", "type", "param", "code"}}
std::string ErrorJson(const absl::Status& status);
// With Retry-After where trying again makes sense (429, 503).
HttpReply ErrorReply(const absl::Status& status, int retry_after_s = 1);

}  // namespace packtrain

#pragma once

// `packtrain chat`: a conversation in the terminal with a running endpoint.

#include <string>

#include "absl/status/status.h"

namespace packtrain {

struct ChatOptions {
  std::string endpoint = "127.0.0.1:8001";  // HOST:PORT
  std::string model;                        // empty: the endpoint's first
  std::string system;
  std::string message;  // one question; empty: a conversation on standard input
  std::string api_key;
  bool thinking = false;
  int max_tokens = 0;  // 0: up to the context
};

// Ends with the input. Errors: UNAVAILABLE (no connection); INVALID_ARGUMENT (what the endpoint
// refused, in its words).
absl::Status RunChat(const ChatOptions& options);

}  // namespace packtrain

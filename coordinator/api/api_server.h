#pragma once

// The OpenAI-compatible endpoint over any number of deployments.

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "coordinator/api/deployment.h"
#include "coordinator/api/http_server.h"

namespace prometheus {
class Registry;
}  // namespace prometheus

namespace packtrain {

struct ApiServerOptions {
  HttpServerOptions http = {};
  // Bearer keys; without any, only loopback addresses are served. /health and /ready need none.
  std::vector<std::string> api_keys = {};
  // Bytes of request bodies that may wait to be parsed and encoded, and of chats of one model to be
  // rendered; beyond it 429.
  size_t preparing_bytes_max = 64 << 20;
  int preparing_max = 256;  // requests, likewise
  // What /plan shows, as JSON: who carries what and what that takes. Any thread; may be null.
  std::function<std::string()> plan = {};
};

class ApiServer {
 public:
  // `deployments` are borrowed and outlive the server; the first one serves requests that name no
  // model. `registry` is what /metrics shows.
  // Errors: FAILED_PRECONDITION (beyond loopback without keys), INVALID_ARGUMENT (address, two
  // deployments with one name), UNAVAILABLE (cannot bind).
  static absl::StatusOr<std::unique_ptr<ApiServer>> Start(
      ApiServerOptions options, std::vector<Deployment*> deployments,
      std::shared_ptr<prometheus::Registry> registry);
  // Cancels what is in progress and closes all connections.
  ~ApiServer();

  uint16_t port() const;
  size_t connections() const;

 private:
  struct Impl;
  explicit ApiServer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace packtrain

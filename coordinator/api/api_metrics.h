#pragma once

// What the API counts, in a Prometheus registry that it shares with the deployments.

#include <memory>
#include <string>

#include "coordinator/api/deployment.h"

namespace prometheus {
class Registry;
}  // namespace prometheus

namespace packtrain {

// Thread-safe.
class ApiMetrics {
 public:
  explicit ApiMetrics(std::shared_ptr<prometheus::Registry> registry);
  ~ApiMetrics();

  // Unknown paths are counted together, so that nobody can make up labels. 499: the client left.
  void CountReply(const std::string& path, int status);
  void CountTokens(const std::string& model, int prompt, int cached, int completion);
  void SetConnections(size_t connections);
  void SetLoad(const std::string& model, const DeploymentLoad& load);
  // Everything in the registry, in Prometheus' text format.
  std::string Serialize() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace packtrain

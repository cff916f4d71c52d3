#pragma once

// Deployments by name and alias, and what is told about them.

#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "coordinator/api/deployment.h"

namespace packtrain {

// Immutable; any thread may use it.
class DeploymentTable {
 public:
  // INVALID_ARGUMENT if there is none or if two share a name or alias.
  static absl::StatusOr<DeploymentTable> Create(std::vector<Deployment*> deployments);

  // An empty name selects the first. NOT_FOUND lists what exists.
  absl::StatusOr<Deployment*> Find(const std::string& name) const;

  const std::vector<Deployment*>& all() const { return deployments_; }

  // Bodies of /v1/models, /v1/models/{id} and of /health and /ready.
  std::string ModelsJson() const;
  absl::StatusOr<std::string> ModelJson(const std::string& name) const;
  std::string StatusJson(const char* status) const;
  bool Healthy() const;  // none has failed
  bool Ready() const;    // all serve

 private:
  std::vector<Deployment*> deployments_;
  std::map<std::string, Deployment*> by_name_;
};

const char* StateName(DeploymentState state);

}  // namespace packtrain

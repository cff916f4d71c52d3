#include "coordinator/api/deployment_table.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "coordinator/api/api_error.h"

namespace packtrain {
namespace {

using ::nlohmann::json;

std::string Dump(const json& value) {
  return value.dump(-1, ' ', false, json::error_handler_t::replace);
}

json Describe(const Deployment& deployment) {
  const DeploymentInfo& info = deployment.info();
  return {{"id", info.name},
          {"object", "model"},
          {"created", info.created_unix_s},
          {"owned_by", "packtrain"},
          {"aliases", info.aliases},
          {"role", info.role},
          {"architecture", info.architecture},
          {"context_length", info.context_length},
          {"vocab_size", deployment.tokenizer().vocab_size()},
          {"parameters", info.parameters},
          {"size_bytes", info.file_bytes},
          {"state", StateName(deployment.state())}};
}

}  // namespace

const char* StateName(DeploymentState state) {
  switch (state) {
    case DeploymentState::kLoading:
      return "loading";
    case DeploymentState::kReady:
      return "ready";
    case DeploymentState::kRecovering:
      return "recovering";
    case DeploymentState::kFailed:
      return "failed";
  }
  return "unknown";
}

absl::StatusOr<DeploymentTable> DeploymentTable::Create(std::vector<Deployment*> deployments) {
  if (deployments.empty()) return absl::InvalidArgumentError("there is no model to serve");
  DeploymentTable table;
  for (Deployment* deployment : deployments) {
    std::vector<std::string> names = deployment->info().aliases;
    names.push_back(deployment->info().name);
    for (const std::string& name : names) {
      if (!table.by_name_.emplace(name, deployment).second) {
        return absl::InvalidArgumentError(
            absl::StrCat("two models are called \"", name, "\"; names and aliases must differ"));
      }
    }
  }
  table.deployments_ = std::move(deployments);
  return table;
}

absl::StatusOr<Deployment*> DeploymentTable::Find(const std::string& name) const {
  if (name.empty()) return deployments_.front();
  const auto found = by_name_.find(name);
  if (found != by_name_.end()) return found->second;
  std::vector<std::string> names;
  for (const Deployment* deployment : deployments_) names.push_back(deployment->info().name);
  return ApiStatus(absl::StatusCode::kNotFound, "model",
                   absl::StrCat("the model \"", name.substr(0, 200),
                                "\" does not exist; served here: ", absl::StrJoin(names, ", ")),
                   "model_not_found");
}

std::string DeploymentTable::ModelsJson() const {
  json data = json::array();
  for (const Deployment* deployment : deployments_) data.push_back(Describe(*deployment));
  return Dump({{"object", "list"}, {"data", std::move(data)}});
}

absl::StatusOr<std::string> DeploymentTable::ModelJson(const std::string& name) const {
  absl::StatusOr<Deployment*> deployment = Find(name);
  if (!deployment.ok()) return deployment.status();
  return Dump(Describe(**deployment));
}

std::string DeploymentTable::StatusJson(const char* status) const {
  json models = json::object();
  for (const Deployment* deployment : deployments_) {
    models[deployment->info().name] = {{"state", StateName(deployment->state())},
                                       {"message", deployment->state_message()}};
  }
  return Dump({{"status", status}, {"models", std::move(models)}});
}

bool DeploymentTable::Healthy() const {
  return std::none_of(deployments_.begin(), deployments_.end(), [](const Deployment* deployment) {
    return deployment->state() == DeploymentState::kFailed;
  });
}

bool DeploymentTable::Ready() const {
  return std::all_of(deployments_.begin(), deployments_.end(), [](const Deployment* deployment) {
    return deployment->state() == DeploymentState::kReady;
  });
}

}  // namespace packtrain

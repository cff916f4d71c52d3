#pragma once

// One model of a topology as the coordinator opens it: its weight file's header, what it is, and
// the deployment that will serve it.

#include <memory>

#include "absl/status/statusor.h"
#include "common/config/topology.h"
#include "coordinator/scheduler/deployment_runner.h"
#include "coordinator/tokenizer/chat_template_host.h"

namespace packtrain {

struct ServedModel {
  ModelEntry entry;
  std::unique_ptr<ChatTemplateHost> template_host;  // outlives the deployment
  std::unique_ptr<DeploymentRunner> deployment;
  std::vector<std::string> warnings;  // lines for the user
};

// Reads headers, tokenizer and chat template; no tensor. Nothing of the file stays mapped, so that
// the coordinator lives on if somebody shortens it. `context` are the positions planned for.
// A template that is broken costs chat only and is one of the warnings.
// Errors: DATA_LOSS, INVALID_ARGUMENT, NOT_FOUND naming file, key and value.
absl::StatusOr<ServedModel> OpenModel(const ModelEntry& entry, int context);

}  // namespace packtrain

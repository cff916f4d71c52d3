#pragma once

// The part of a completion request that takes time: JSON, chat template, tokenizer. Runs off the
// I/O thread; stateless.

#include <nlohmann/json.hpp>
#include <string_view>

#include "absl/status/statusor.h"
#include "coordinator/api/deployment.h"
#include "coordinator/api/request_parser.h"

namespace packtrain {

class DeploymentTable;

struct PreparedCompletion {
  Deployment* deployment = nullptr;
  CompletionRequest request;
  bool starts_in_reasoning = false;
};

// A body that has been parsed, and the deployment that it is for.
struct CompletionTarget {
  nlohmann::json body;
  Deployment* deployment = nullptr;
};

// Errors: INVALID_ARGUMENT (not JSON, not an object), NOT_FOUND (model).
absl::StatusOr<CompletionTarget> ParseTarget(std::string_view body,
                                             const DeploymentTable& deployments);

// Errors: INVALID_ARGUMENT with the field at fault (also when a prompt does not fit the context),
// UNAVAILABLE (deployment not ready).
absl::StatusOr<PreparedCompletion> PrepareCompletion(CompletionKind kind, CompletionTarget target);

// What to answer to /tokenize and /detokenize.
absl::StatusOr<std::string> Tokenize(std::string_view body, const DeploymentTable& deployments);
absl::StatusOr<std::string> Detokenize(std::string_view body, const DeploymentTable& deployments);

}  // namespace packtrain

#pragma once

// The part of a completion request that takes time: JSON, chat template, tokenizer. Runs off the
// I/O thread; stateless.

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

// Errors: INVALID_ARGUMENT with the field at fault (also when a prompt does not fit the context),
// NOT_FOUND (model), UNAVAILABLE (deployment not ready).
absl::StatusOr<PreparedCompletion> PrepareCompletion(CompletionKind kind, std::string_view body,
                                                     const DeploymentTable& deployments);

// What to answer to /tokenize and /detokenize.
absl::StatusOr<std::string> Tokenize(std::string_view body, const DeploymentTable& deployments);
absl::StatusOr<std::string> Detokenize(std::string_view body, const DeploymentTable& deployments);

}  // namespace packtrain

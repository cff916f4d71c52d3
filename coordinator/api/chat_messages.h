#pragma once

// The `messages` of a chat request, brought into the form that chat templates expect.

#include <nlohmann/json_fwd.hpp>

#include "absl/status/statusor.h"
#include "coordinator/api/json_fields.h"

namespace packtrain {

// Checks roles and contents. Arrays of text parts become one string, tool-call arguments become
// objects, `developer` becomes `system`, `reasoning` becomes `reasoning_content`.
absl::StatusOr<nlohmann::json> ParseMessages(const JsonFields& fields);

}  // namespace packtrain

#pragma once

// `packtrain serve`: opens the models, plans, starts workers and endpoint, and runs until it is
// told to end.

#include "absl/status/status.h"
#include "coordinator/cli/serve_options.h"

namespace packtrain {

// Returns OK after SIGINT or SIGTERM, when everything started here has ended. Errors: whatever
// kept the endpoint or every model from being served.
absl::Status RunServe(const ServeOptions& options);

}  // namespace packtrain

#pragma once

// Whether this host has room for what a Load message asks, by the bill that the planner made the
// plan with: refused before anything is read.

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/model/bill.h"
#include "worker/server/model_loader.h"

namespace packtrain {

// What the request takes of this host's RAM: all of a CPU stage or experts worker; of a stage on a
// GPU what it keeps beside the card. Errors: INVALID_ARGUMENT for layers that the model lacks.
absl::StatusOr<MemoryBill> HostBillOf(const LoadRequest& request, const ModelFacts& model);

// RESOURCE_EXHAUSTED, with the bill, if this host or its control group has less left. Weights in a
// segment that is filled already are not asked for again.
absl::Status CheckHostBill(const LoadRequest& request, const ModelFacts& model);

}  // namespace packtrain

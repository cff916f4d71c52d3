#pragma once

// Loads stages and experts for the device "cpu".

#include "worker/server/model_loader.h"

namespace packtrain {

// Weights go into the request's segment, or one of the worker's own.
// Errors: what GgufFile, ReadModelConfig, Segment and CpuStage say.
absl::StatusOr<LoadedModel> LoadCpuModel(const LoadRequest& request, ExpertsClient* experts,
                                         const LoadProgress& progress);

}  // namespace packtrain

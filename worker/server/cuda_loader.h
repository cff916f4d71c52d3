#pragma once

// Stages for the devices "cuda:N", and their links.

#include <string>

#include "worker/server/device_links.h"
#include "worker/server/model_loader.h"

namespace packtrain {

// Weights go straight from the file to the device; the embedding table stays in the file's mapping.
// Errors: INVALID_ARGUMENT for an experts worker or a malformed device, FAILED_PRECONDITION where
// the CUDA library or the device is missing, RESOURCE_EXHAUSTED with the bill, and what GgufFile
// and ReadModelConfig say.
absl::StatusOr<LoadedModel> LoadCudaModel(const LoadRequest& request, ExpertsClient* experts,
                                          const LoadProgress& progress);

// Empty where the CUDA library or the device is missing, which loading reports; and for "cpu".
DeviceLinks CudaLinks(const std::string& device);

}  // namespace packtrain

#pragma once

// Refuses ubatches that would reach outside what a stage has.

#include <string_view>

#include "absl/status/status.h"
#include "common/model/config.h"
#include "worker/engine/bundle.h"
#include "worker/engine/stage.h"

namespace packtrain {

struct UbatchLimits {
  int num_slots = 0;
  int num_pages = 0;
  int num_snapshots = 0;
  int max_tokens = 0;
};

// INVALID_ARGUMENT, naming slot, value and limit.
absl::Status CheckUbatch(const Ubatch& ubatch, const UbatchLimits& limits,
                         const ModelConfig& config);

// INVALID_ARGUMENT if the bundle has no such tensor of this type and shape.
absl::Status CheckBundleTensor(const Bundle& bundle, std::string_view name, ElementType type,
                               int64_t rows, int64_t cols);

}  // namespace packtrain

#pragma once

#include <string_view>

#include "absl/status/statusor.h"

namespace packtrain {

// N of "cuda:N". Errors: INVALID_ARGUMENT naming the device and what is allowed.
absl::StatusOr<int> CudaOrdinal(std::string_view device);

}  // namespace packtrain

#pragma once

// Measures what a hop through host memory costs a GPU besides the transport.

#include <cstddef>

#include "absl/status/statusor.h"

namespace packtrain {

// Median time in us of `bytes` from the device into a bundle and from a bundle to the device, by
// way of pinned memory, as a stage does it. Takes some ten times that.
absl::StatusOr<double> MeasureCopies(int device, size_t bytes);

}  // namespace packtrain

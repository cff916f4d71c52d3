#pragma once

// A bundle's header on the wire (proto/tensor.proto), shared by all transports.

#include <cstddef>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "worker/engine/bundle.h"

namespace packtrain::v1 {
class BundleHeader;
}

namespace packtrain {

inline constexpr size_t kMaxBundleTensors = 16;
inline constexpr size_t kMaxTensorNameBytes = 64;
// Of a serialised BundleHeader; larger ones are refused before they are read.
inline constexpr size_t kMaxBundleHeaderBytes = 8192;

// Payload bytes of all tensors. Errors: INVALID_ARGUMENT if a tensor's data does not have the size
// its shape says, or the bundle is beyond `max_bytes` or the limits above.
absl::StatusOr<size_t> CheckBundle(const Bundle& bundle, size_t max_bytes);

void EncodeBundleHeader(const Bundle& bundle, v1::BundleHeader* out);

// Gives `bundle` the shape that the header tells, keeping memory. Returns the payload bytes.
// Errors: DATA_LOSS if the header is beyond a limit; nothing is allocated then.
absl::StatusOr<size_t> ShapeBundle(const v1::BundleHeader& header, size_t max_bytes,
                                   Bundle* bundle);

}  // namespace packtrain

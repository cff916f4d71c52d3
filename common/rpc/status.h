#pragma once

// The only place that converts between absl::Status and what goes over the wire.

#include <cstdint>
#include <string>

#include "absl/status/status.h"

namespace grpc {
class Status;
}

namespace packtrain {

absl::Status FromGrpc(const grpc::Status& status);
grpc::Status ToGrpc(const absl::Status& status);

// From a message's code and text; codes that do not exist become UNKNOWN.
absl::Status StatusFromWire(uint32_t code, std::string message);
inline uint32_t WireCode(const absl::Status& status) {
  return static_cast<uint32_t>(status.raw_code());
}

}  // namespace packtrain

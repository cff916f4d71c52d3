#include "common/rpc/status.h"

#include <grpcpp/support/status.h>

#include <utility>

namespace packtrain {

absl::Status StatusFromWire(uint32_t code, std::string message) {
  if (code == 0) return absl::OkStatus();
  constexpr uint32_t kLastCode = static_cast<uint32_t>(absl::StatusCode::kUnauthenticated);
  if (code > kLastCode) return absl::UnknownError(message);
  return absl::Status(static_cast<absl::StatusCode>(code), message);
}

absl::Status FromGrpc(const grpc::Status& status) {
  return StatusFromWire(static_cast<uint32_t>(status.error_code()), status.error_message());
}

grpc::Status ToGrpc(const absl::Status& status) {
  return grpc::Status(static_cast<grpc::StatusCode>(status.raw_code()),
                      std::string(status.message()));
}

}  // namespace packtrain

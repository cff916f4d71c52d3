#pragma once

// The receiving side of the gRPC transport: a generic service (no protobuf in the payload's way)
// that hands the frames of expected channels to their links. Protocol: proto/tensor.proto.

#include <memory>

#include "absl/status/statusor.h"
#include "worker/transport/transport.h"

namespace grpc {
class ServerBuilder;
}

namespace packtrain {

// How many frames a sender may have on the way.
inline constexpr uint32_t kFrameWindow = 16;
inline constexpr char kTensorMethod[] = "/packtrain.v1.Tensors/Send";

// Thread-safe. Outlives the server it is registered with; links may outlive it.
class TensorService {
 public:
  TensorService();
  ~TensorService();
  // Before the server starts.
  void Register(grpc::ServerBuilder* builder);
  // From now on a sender of that channel and epoch is accepted, one at most.
  // Errors: ALREADY_EXISTS if the channel is open.
  absl::StatusOr<std::unique_ptr<ReceiveLink>> Expect(const ChannelId& channel, uint64_t epoch,
                                                      size_t max_bytes);

  struct Impl;

 private:
  std::shared_ptr<Impl> impl_;
};

}  // namespace packtrain

#pragma once

// Transport over gRPC, between any two workers that can reach each other.

#include <memory>

#include "worker/transport/grpc/tensor_service.h"
#include "worker/transport/transport.h"

namespace packtrain {

// `service` (borrowed) receives; it is registered with this worker's server.
std::unique_ptr<Transport> MakeGrpcTransport(TensorService* service);

}  // namespace packtrain

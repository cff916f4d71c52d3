#pragma once

// Transport over gRPC, between any two workers that can reach each other.

#include <memory>

#include "common/rpc/tls.h"
#include "worker/transport/grpc/tensor_service.h"
#include "worker/transport/transport.h"

namespace packtrain {

// `service` (borrowed) receives; it is registered with this worker's server.
// `tls` (may be null) for connections to other hosts.
std::unique_ptr<Transport> MakeGrpcTransport(TensorService* service,
                                             std::shared_ptr<const Tls> tls);

}  // namespace packtrain

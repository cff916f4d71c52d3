#pragma once

// Transport between two GPUs: tensors that lie in a GPU's memory go by NCCL straight into the
// other's, what lies in host memory goes over another transport, which also tells the receiver what
// is to come. So a receiver waits on the host for a sender that computes, and both ends of an NCCL
// call are there when it starts. Protocol: proto/tensor.proto.

#include <memory>
#include <vector>

#include "worker/transport/transport.h"

namespace packtrain {

// `carriers` (borrowed): the first that can connect carries the rest of each bundle.
std::unique_ptr<Transport> MakeNcclTransport(int device, const PeerInfo& self,
                                             std::vector<Transport*> carriers);

}  // namespace packtrain

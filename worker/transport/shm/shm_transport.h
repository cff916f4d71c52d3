#pragma once

// Transport over a ring in shared memory, between two processes of one host. Protocol:
// proto/tensor.proto.

#include <chrono>
#include <memory>
#include <string>

#include "worker/transport/transport.h"

namespace packtrain {

// `spin`: how long a waiting end may use a core that nobody else wants beyond the predicted arrival
// before it sleeps.
std::unique_ptr<Transport> MakeShmTransport(std::chrono::nanoseconds spin);

// The abstract socket name of a channel.
std::string ShmChannelName(const ChannelId& channel, uint64_t epoch);

}  // namespace packtrain

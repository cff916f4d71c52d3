#pragma once

// How our processes open gRPC connections: keepalive, message sizes, credentials.

#include <memory>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace grpc {
class Channel;
class ServerBuilder;
}  // namespace grpc

namespace packtrain {

// A channel of its own (connections are never shared with another channel) to "unix:PATH" or
// "host:port". A peer that stays silent for 20 s is taken for gone.
std::shared_ptr<grpc::Channel> OpenChannel(const std::string& address);

// The server's side of the same settings. Binds nothing.
void ConfigureServer(grpc::ServerBuilder* builder);

// OK for UNIX sockets and loopback addresses; other addresses only with `insecure`, since nothing
// on the connection is encrypted. Errors: INVALID_ARGUMENT, FAILED_PRECONDITION.
absl::Status CheckAddressAllowed(std::string_view address, bool insecure);

}  // namespace packtrain

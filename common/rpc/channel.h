#pragma once

// How our processes open gRPC connections: keepalive, message sizes, credentials.

#include <memory>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/rpc/tls.h"

namespace grpc {
class Channel;
class ServerBuilder;
class ServerCredentials;
}  // namespace grpc

namespace packtrain {

// A channel of its own (connections are never shared with another channel) to "unix:PATH" or
// "host:port". A peer that stays silent for 20 s is taken for gone. With `tls` (may be null)
// everything but UNIX sockets is encrypted and both ends show certificates.
std::shared_ptr<grpc::Channel> OpenChannel(const std::string& address, const Tls* tls);

// The server's side of the same settings. Binds nothing.
void ConfigureServer(grpc::ServerBuilder* builder);
std::shared_ptr<grpc::ServerCredentials> ServerCredentialsFor(const std::string& address,
                                                              const Tls* tls);

// OK for UNIX sockets and loopback addresses; other addresses only if connections are `encrypted`
// or plain ones allowed. Errors: INVALID_ARGUMENT, FAILED_PRECONDITION.
absl::Status CheckAddressAllowed(std::string_view address, bool encrypted, bool insecure);

}  // namespace packtrain

#include "common/rpc/channel.h"

#include <grpc/grpc.h>
#include <grpcpp/grpcpp.h>

#include <cstdlib>
#include <string>

#include "absl/strings/str_format.h"

namespace packtrain {
namespace {

constexpr int kKeepaliveTimeMs = 10'000;
constexpr int kKeepaliveTimeoutMs = 10'000;
// A frame of 1 MiB with its header; control messages stay far below.
constexpr int kMaxMessageBytes = 4 << 20;

// gRPC would shut its library down whenever its last object of a process goes, and that can wait up
// to ten seconds for its own poller. Held until the process ends instead.
// Its own log would repeat in its words what our messages say; GRPC_VERBOSITY brings it back.
// Its default poller is one set of descriptors for all threads, any of which may be woken to pass a
// message on to the one that waits for it; with "poll" each waits for its own.
void KeepLibrary() {
  static const bool kept = (setenv("GRPC_VERBOSITY", "NONE", 0),
                            setenv("GRPC_POLL_STRATEGY", "poll", 0), grpc_init(), true);
  static_cast<void>(kept);
}

bool Encrypts(const std::string& address, const Tls* tls) {
  return tls != nullptr && !address.starts_with("unix:");
}

}  // namespace

std::shared_ptr<grpc::Channel> OpenChannel(const std::string& address, const Tls* tls) {
  KeepLibrary();
  std::shared_ptr<grpc::ChannelCredentials> credentials =
      Encrypts(address, tls) ? grpc::SslCredentials({.pem_root_certs = tls->ca,
                                                     .pem_private_key = tls->key,
                                                     .pem_cert_chain = tls->certificate})
                             : grpc::InsecureChannelCredentials();
  grpc::ChannelArguments args;
  args.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  args.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, kKeepaliveTimeMs);
  args.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, kKeepaliveTimeoutMs);
  args.SetInt(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  // Workers appear some time after the first attempt to reach them.
  args.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 20);
  // Despite its name: how long one attempt may take at least.
  args.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 1000);
  args.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 500);
  args.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  args.SetMaxReceiveMessageSize(kMaxMessageBytes);
  return grpc::CreateCustomChannel(address, credentials, args);
}

void ConfigureServer(grpc::ServerBuilder* builder) {
  KeepLibrary();
  builder->SetMaxReceiveMessageSize(kMaxMessageBytes);
  builder->AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, kKeepaliveTimeMs);
  builder->AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, kKeepaliveTimeoutMs);
  builder->AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  builder->AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS,
                              kKeepaliveTimeMs / 2);
  // Two workers must never listen on one port by accident.
  builder->AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
}

std::shared_ptr<grpc::ServerCredentials> ServerCredentialsFor(const std::string& address,
                                                              const Tls* tls) {
  if (!Encrypts(address, tls)) return grpc::InsecureServerCredentials();
  grpc::SslServerCredentialsOptions options(
      GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY);
  options.pem_root_certs = tls->ca;
  options.pem_key_cert_pairs.push_back({tls->key, tls->certificate});
  return grpc::SslServerCredentials(options);
}

absl::Status CheckAddressAllowed(std::string_view address, bool encrypted, bool insecure) {
  if (address.starts_with("unix:")) return absl::OkStatus();
  const size_t colon = address.rfind(':');
  if (colon == std::string_view::npos || colon == 0 || colon + 1 == address.size()) {
    return absl::InvalidArgumentError(
        absl::StrFormat("address '%s': expected unix:PATH or HOST:PORT", address));
  }
  const std::string_view host = address.substr(0, colon);
  const bool loopback = host == "localhost" || host == "[::1]" || host.starts_with("127.");
  if (loopback || encrypted || insecure) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrFormat(
      "address '%s' is not loopback: give certificates (--tls-ca, --tls-certificate, "
      "--tls-key; tls: in a topology) or allow plain connections (--insecure; "
      "insecure: true in a topology)",
      address));
}

}  // namespace packtrain

#pragma once

// Certificates for connections between processes on different hosts. Both ends show one, signed by
// the same authority; the one that is dialled must be for the dialled name or address.

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "common/rpc/tls_files.h"

namespace packtrain {

// The files' texts.
struct Tls {
  std::string ca, certificate, key;
};

// Reads and checks them; null if none are given. Errors, naming the file: NOT_FOUND;
// INVALID_ARGUMENT if it is not what it should be, the key belongs to another certificate, or the
// certificate is not signed by the CA or not valid now.
absl::StatusOr<std::shared_ptr<const Tls>> ReadTls(const TlsFiles& files);

// Why connections to "HOST:PORT" fail, found out by opening one, in a few words; empty if it does
// not show. `tls` null: plain ones. gRPC itself only says that the handshake failed. Takes up to 3
// s.
std::string DiagnoseConnection(const std::string& address, const Tls* tls);

}  // namespace packtrain

#pragma once

// One worker's end of a transport under test, with what it needs around it (a gRPC server).

#include <memory>
#include <string>

#include "worker/transport/transport.h"

namespace packtrain {

class TransportEndpoint {
 public:
  // `transport`: "shm" or "grpc". `address`: "unix:PATH" where a gRPC server may listen.
  TransportEndpoint(const std::string& transport, const std::string& worker_id,
                    const std::string& address, uint64_t epoch);
  ~TransportEndpoint();
  Transport& transport();
  const PeerInfo& info() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace packtrain

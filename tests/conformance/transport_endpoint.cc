#include "tests/conformance/transport_endpoint.h"

#include <grpcpp/grpcpp.h>

#include "common/base/check.h"
#include "common/rpc/channel.h"
#include "worker/transport/grpc/grpc_transport.h"
#include "worker/transport/shm/shm_transport.h"

namespace packtrain {

struct TransportEndpoint::Impl {
  PeerInfo info;
  TensorService service;
  std::unique_ptr<grpc::Server> server;
  std::unique_ptr<Transport> transport;
};

TransportEndpoint::TransportEndpoint(const std::string& transport, const std::string& worker_id,
                                     const std::string& address, uint64_t epoch)
    : impl_(std::make_unique<Impl>()) {
  impl_->info = {worker_id, epoch, "this-host", "cpu", address};
  if (transport == "shm") {
    impl_->transport = MakeShmTransport(std::chrono::nanoseconds(0));
    return;
  }
  CHECK(transport == "grpc");
  grpc::ServerBuilder builder;
  ConfigureServer(&builder);
  builder.AddListeningPort(address, grpc::InsecureServerCredentials());
  impl_->service.Register(&builder);
  impl_->server = builder.BuildAndStart();
  CHECK(impl_->server != nullptr);
  impl_->transport = MakeGrpcTransport(&impl_->service, nullptr);
}

TransportEndpoint::~TransportEndpoint() {
  if (impl_->server != nullptr) impl_->server->Shutdown(std::chrono::system_clock::now());
}

Transport& TransportEndpoint::transport() { return *impl_->transport; }
const PeerInfo& TransportEndpoint::info() const { return impl_->info; }

}  // namespace packtrain

// A worker that is there to be killed: transport_peer TRANSPORT send|receive OWN_ADDRESS
// PEER_ADDRESS EPOCH. It sends without end, or receives one bundle and then stands still.

#include <unistd.h>

#include <cstdlib>
#include <string>

#include "tests/conformance/transport_endpoint.h"

int main(int argc, char** argv) {
  using packtrain::Bundle;
  if (argc != 6) return 2;
  const std::string transport = argv[1], role = argv[2];
  constexpr size_t kMaxBytes = 8 << 20;
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::minutes(1);
  const uint64_t epoch = std::strtoull(argv[5], nullptr, 10);
  packtrain::TransportEndpoint self(transport, "child", argv[3], epoch);
  const packtrain::PeerInfo parent{"parent", epoch, "this-host", "cpu", argv[4]};
  Bundle bundle;
  if (role == "send") {
    auto link = self.transport().OpenSend({"child", "parent", "data"}, parent, kMaxBytes);
    if (!link.ok()) return 1;
    bundle.epoch = epoch;
    bundle.Shape(0, "hidden", packtrain::ElementType::kU8, 8, 1 << 20);
    while ((*link)->Send(bundle, deadline).ok()) {
    }
    return 1;
  }
  auto link = self.transport().OpenReceive({"parent", "child", "data"}, parent, kMaxBytes);
  if (!link.ok() || !(*link)->Receive(&bundle, deadline).ok()) return 1;
  pause();
  return 1;
}

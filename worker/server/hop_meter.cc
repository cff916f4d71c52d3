#include "worker/server/hop_meter.h"

#include <algorithm>
#include <memory>

#include "common/base/status_macros.h"

namespace packtrain {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::chrono::seconds kTimeout(10);
// Small hops vary more and cost less.
int Trips(uint64_t bytes) { return bytes <= (256 << 10) ? 25 : 5; }

}  // namespace

absl::StatusOr<std::vector<double>> MeasureHop(Transport* transport, const PeerInfo& self,
                                               const PeerInfo& peer, bool initiator,
                                               const std::vector<uint64_t>& payload_bytes) {
  const size_t max_bytes = *std::max_element(payload_bytes.begin(), payload_bytes.end());
  const ChannelId out{self.worker_id, peer.worker_id, "measure"};
  const ChannelId in{peer.worker_id, self.worker_id, "measure"};
  ASSIGN_OR_RETURN(auto receive, transport->OpenReceive(in, peer, max_bytes));
  Bundle bundle, echo;
  bundle.epoch = self.epoch;
  // One link is opened after the other, and nothing with a payload sent before both are: opening a
  // link between GPUs may wait for what runs on them, a send that nobody receives yet included.
  if (!initiator) RETURN_IF_ERROR(receive->Receive(&echo, Clock::now() + kTimeout));
  ASSIGN_OR_RETURN(auto send, transport->OpenSend(out, peer, max_bytes));
  RETURN_IF_ERROR(send->Send(bundle, Clock::now() + kTimeout));
  if (initiator) RETURN_IF_ERROR(receive->Receive(&echo, Clock::now() + kTimeout));
  send->Lend(&bundle);
  std::vector<double> times;
  for (const uint64_t bytes : payload_bytes) {
    const auto cols = static_cast<uint32_t>(bytes);
    if (bundle.device_memory.empty()) {
      bundle.Shape(0, "payload", ElementType::kU8, 1, cols);
    } else {
      bundle.ShapeOnDevice(0, "payload", ElementType::kU8, 1, cols, bundle.device_memory.data());
    }
    std::vector<double> trips;
    for (int i = 0; i < Trips(bytes); ++i) {
      const Clock::time_point begin = Clock::now();
      if (initiator) RETURN_IF_ERROR(send->Send(bundle, begin + kTimeout));
      RETURN_IF_ERROR(receive->Receive(&echo, begin + kTimeout));
      if (!initiator) RETURN_IF_ERROR(send->Send(echo, begin + kTimeout));
      trips.push_back(std::chrono::duration<double, std::micro>(Clock::now() - begin).count());
    }
    std::nth_element(trips.begin(), trips.begin() + static_cast<long>(trips.size() / 2),
                     trips.end());
    times.push_back(trips[trips.size() / 2] / 2);
  }
  // What was sent may be lost when the sender closes: the last to receive says that it has.
  bundle.tensors.clear();
  RETURN_IF_ERROR(initiator ? send->Send(bundle, Clock::now() + kTimeout)
                            : receive->Receive(&echo, Clock::now() + kTimeout));
  // Each end closes what it receives only after the other has closed what it sends: a bundle is
  // sent once the sender says so, which may be after its arrival.
  send = nullptr;
  receive->Receive(&echo, Clock::now() + kTimeout).IgnoreError();
  return times;
}

}  // namespace packtrain

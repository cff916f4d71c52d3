#pragma once

// Measures the one-way time of a hop, with the same links that would carry it.

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "worker/transport/transport.h"

namespace packtrain {

// Both ends call it at the same time with the same sizes. The initiator gets half the median round
// trip in us per size; the other end echoes and gets nothing of use.
absl::StatusOr<std::vector<double>> MeasureHop(Transport* transport, const PeerInfo& self,
                                               const PeerInfo& peer, bool initiator,
                                               const std::vector<uint64_t>& payload_bytes);

}  // namespace packtrain

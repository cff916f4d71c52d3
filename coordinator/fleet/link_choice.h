#pragma once

// Which transport joins two workers.

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "coordinator/placement/plan.h"

namespace packtrain {

namespace v1 {
class HopMeasured;
class PeerInfo;
}  // namespace v1

enum class LinkUse : uint8_t {
  kActivations,  // from stage to stage, where a GPU's memory may be read directly
  kHost,         // sampled tokens, experts: from host memory to host memory
};

// Those that can join the two, in the order of preference; one if a pin applies. The first matching
// pin counts. Errors: INVALID_ARGUMENT if a pin names a transport that cannot join them,
// FAILED_PRECONDITION if none can.
absl::StatusOr<std::vector<std::string>> CandidateTransports(
    const v1::PeerInfo& a, const std::string& a_name, const v1::PeerInfo& b,
    const std::string& b_name, const std::vector<LinkPin>& pins, LinkUse use);

struct LinkChoice {
  std::string transport;
  // With nccl: bundles of fewer bytes go by the next candidate.
  uint64_t direct_from_bytes = 0;

  std::string ToString() const;
};

// The fastest for `decode_bytes`; those within 5 % of it are told apart by their time for the
// largest size measured, then by their order in `candidates`. Where nccl is not the fastest for
// decode_bytes but is for the largest size, it takes bundles from the size on at which it wins over
// the next candidate, which carries the rest; unless a further one is the fastest for decode_bytes.
LinkChoice FastestTransport(const std::vector<std::string>& candidates,
                            const v1::HopMeasured& measured, uint64_t decode_bytes);

}  // namespace packtrain

#include "coordinator/fleet/link_choice.h"

#include <algorithm>
#include <limits>

#include "absl/strings/str_format.h"
#include "proto/control.pb.h"

namespace packtrain {
namespace {

// Times that differ by less are the same.
constexpr double kTie = 1.05;
constexpr char kNccl[] = "nccl";

bool Matches(const LinkPin& pin, const std::string& a, const std::string& b) {
  const auto is = [](const std::string& pattern, const std::string& name) {
    return pattern == "*" || pattern == name;
  };
  return (is(pin.from, a) && is(pin.to, b)) || (is(pin.from, b) && is(pin.to, a));
}

double TimeOf(const v1::HopMeasured& measured, const std::string& transport, uint64_t bytes) {
  for (const v1::HopMeasured::Time& t : measured.times()) {
    if (t.transport() == transport && t.payload_bytes() == bytes) return t.one_way_us();
  }
  return std::numeric_limits<double>::infinity();
}

}  // namespace

absl::StatusOr<std::vector<std::string>> CandidateTransports(
    const v1::PeerInfo& a, const std::string& a_name, const v1::PeerInfo& b,
    const std::string& b_name, const std::vector<LinkPin>& pins, LinkUse use) {
  std::vector<std::string> candidates;
  const bool same_host = !a.host_id().empty() && a.host_id() == b.host_id();
  const auto reachable = [](const v1::PeerInfo& p) {
    return !p.data_address().empty() && !p.data_address().starts_with("unix:");
  };
  const bool joined = same_host || (reachable(a) && reachable(b));
  if (use == LinkUse::kActivations && joined && !a.nccl().empty() && a.nccl() == b.nccl() &&
      a.gpu() != b.gpu()) {
    candidates.emplace_back(kNccl);
  }
  if (same_host) candidates.emplace_back("shm");
  if (joined) candidates.emplace_back("grpc");
  for (const LinkPin& pin : pins) {
    if (!Matches(pin, a_name, b_name)) continue;
    // What lies in host memory goes by one of the others.
    if (pin.transport == kNccl && use == LinkUse::kHost) continue;
    if (std::find(candidates.begin(), candidates.end(), pin.transport) == candidates.end()) {
      return absl::InvalidArgumentError(
          absl::StrFormat("link between %s and %s is pinned to '%s', which cannot join them",
                          a_name, b_name, pin.transport));
    }
    return std::vector<std::string>{pin.transport};
  }
  if (candidates.empty()) {
    return absl::FailedPreconditionError(
        absl::StrFormat("%s at %s and %s at %s are on two hosts and cannot reach each other",
                        a_name, a.data_address(), b_name, b.data_address()));
  }
  return candidates;
}

std::string LinkChoice::ToString() const {
  if (direct_from_bytes == 0) return transport;
  return absl::StrFormat("%s from %d bytes on", transport, direct_from_bytes);
}

LinkChoice FastestTransport(const std::vector<std::string>& candidates,
                            const v1::HopMeasured& measured, uint64_t decode_bytes) {
  uint64_t largest = 0;
  double best = std::numeric_limits<double>::infinity();
  for (const v1::HopMeasured::Time& t : measured.times()) {
    largest = std::max(largest, t.payload_bytes());
    if (t.payload_bytes() == decode_bytes) best = std::min(best, t.one_way_us());
  }
  std::string chosen = candidates.front();
  double chosen_time = std::numeric_limits<double>::infinity();
  for (const std::string& candidate : candidates) {
    if (TimeOf(measured, candidate, decode_bytes) > best * kTie) continue;
    const double time = TimeOf(measured, candidate, largest);
    if (time * kTie < chosen_time) {
      chosen = candidate;
      chosen_time = time;
    }
  }
  if (candidates.front() != kNccl || chosen == kNccl ||
      TimeOf(measured, kNccl, largest) * kTie >= chosen_time) {
    return {chosen};
  }
  const std::string& rest = candidates[1];
  if (TimeOf(measured, rest, decode_bytes) > best * kTie) return {chosen};
  // Both take a time that grows evenly with the size; from where the two lines cross nccl wins.
  const double behind =
      TimeOf(measured, kNccl, decode_bytes) - TimeOf(measured, rest, decode_bytes);
  const double ahead = TimeOf(measured, rest, largest) - TimeOf(measured, kNccl, largest);
  const double share = behind / (behind + ahead);
  return {kNccl, decode_bytes + 1 +
                     static_cast<uint64_t>(share * static_cast<double>(largest - decode_bytes))};
}

}  // namespace packtrain

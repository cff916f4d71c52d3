#pragma once

// Moving bundles between two workers. A transport knows whether it can join two places and opens
// links; a link carries bundles one way, in order. Both ends choose by the same rule: among the
// transports that can connect the one measured fastest for the hop's sizes, ties in the order
// nccl, shm, grpc; the topology may pin one by name.

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "worker/engine/bundle.h"

namespace packtrain {

// Exchanged once between two workers before they connect.
struct PeerInfo {
  std::string worker_id;
  uint64_t epoch = 0;
  std::string host_id;       // equal on one kernel instance (boot id + shm namespace)
  std::string device;        // "cpu", "cuda:0"
  std::string data_address;  // where this worker's data channel listens ("unix:...", "host:port")
  std::string nccl{};        // version of NCCL that this worker can load; empty: none
  std::string gpu{};         // what NCCL tells GPUs apart by: two that are equal cannot be joined
};

struct LinkStats {
  uint64_t bundles = 0;
  uint64_t bytes = 0;
};

// Bundles that an engine keeps for a link: one that is filled, one on its way, one waiting. More
// would only hide a slow peer.
inline constexpr int kBundlesInFlight = 3;

// The sending end. One thread at a time.
class SendLink {
 public:
  virtual ~SendLink() = default;
  // Returns when the bundle may be reused. DEADLINE_EXCEEDED if the receiver is too slow,
  // UNAVAILABLE if it is gone; after an error the link is closed.
  virtual absl::Status Send(const Bundle& bundle,
                            std::chrono::steady_clock::time_point deadline) = 0;
  // Sends a small bundle if that needs no waiting; else sends nothing and returns false, and Send
  // tells of errors.
  virtual bool TrySend(const Bundle& /*bundle*/) { return false; }
  virtual void Close() = 0;  // any thread, any number of times; wakes a blocked Send
  // Once for each of at most kBundlesInFlight bundles that will be sent again and again, before
  // they are filled: a link that sends from a GPU's memory lends them some.
  virtual void Lend(Bundle* /*bundle*/) {}
  virtual LinkStats stats() const = 0;
};

// The receiving end. One thread at a time.
class ReceiveLink {
 public:
  virtual ~ReceiveLink() = default;
  // Fills `bundle` (its memory is kept where it fits) with the next one in order. A bundle of an
  // older epoch is dropped; hostile sizes are refused with DATA_LOSS and close the link.
  // DEADLINE_EXCEEDED leaves the link open if nothing of the next bundle had come, UNAVAILABLE if
  // the sender is gone.
  virtual absl::Status Receive(Bundle* bundle, std::chrono::steady_clock::time_point deadline) = 0;
  virtual void Close() = 0;
  virtual LinkStats stats() const = 0;
};

// A named channel from one worker to another: (from, to, name), e.g. "hidden" or "tokens".
struct ChannelId {
  std::string from;
  std::string to;
  std::string name;
};

// Opening waits for the other end for at most this long.
inline constexpr std::chrono::seconds kOpenTimeout(10);

class Transport {
 public:
  virtual ~Transport() = default;
  virtual std::string_view name() const = 0;
  virtual bool CanConnect(const PeerInfo& self, const PeerInfo& peer) const = 0;
  // `max_bytes`: payload of the largest bundle that will be sent. `peer.epoch` is the link's epoch.
  // OpenSend waits for the receiver to have opened (UNAVAILABLE after kOpenTimeout); OpenReceive
  // does not wait.
  virtual absl::StatusOr<std::unique_ptr<SendLink>> OpenSend(const ChannelId& channel,
                                                             const PeerInfo& peer,
                                                             size_t max_bytes) = 0;
  virtual absl::StatusOr<std::unique_ptr<ReceiveLink>> OpenReceive(const ChannelId& channel,
                                                                   const PeerInfo& peer,
                                                                   size_t max_bytes) = 0;
};

}  // namespace packtrain

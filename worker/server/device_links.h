#pragma once

// What a worker's device adds to the ways of reaching other workers.

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "worker/transport/transport.h"

namespace packtrain {

struct DeviceLinks {
  // What a bundle of so many bytes takes from the device's memory to the host's and back, in us.
  // Null: they are one.
  std::function<absl::StatusOr<double>(size_t bytes)> measure_copies;
  std::string nccl;    // as in PeerInfo; empty: none
  std::string bus_id;  // of the GPU
  // Not null if there is NCCL.
  std::function<std::unique_ptr<Transport>(const PeerInfo& self, std::vector<Transport*> carriers)>
      make_nccl;
};

}  // namespace packtrain

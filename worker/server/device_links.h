#pragma once

// What a worker's device adds to the ways of reaching other workers.

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "worker/transport/transport.h"

namespace packtrain {

struct DeviceLinks {
  std::string nccl;    // as in PeerInfo; empty: none
  std::string bus_id;  // of the GPU
  // Not null if there is NCCL.
  std::function<std::unique_ptr<Transport>(const PeerInfo& self, std::vector<Transport*> carriers)>
      make_nccl;
};

}  // namespace packtrain

#pragma once

// A worker's state over one control stream: what it has loaded, its links, its engine or experts
// servers. Translates messages; one thread (the stream's) calls Handle.

#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "common/rpc/tls.h"
#include "worker/engine/engine.h"
#include "worker/server/device_links.h"
#include "worker/server/model_loader.h"
#include "worker/transport/transport.h"

namespace packtrain {

class TensorService;

namespace v1 {
class CoordinatorMessage;
class WorkerMessage;
}  // namespace v1

struct WorkerOptions {
  std::string device;        // "cpu"
  std::string data_address;  // what peers dial
  DeviceLinks device_links{};
  std::shared_ptr<const Tls> tls = nullptr;  // for connections to other hosts
};

class Worker {
 public:
  using Sender = std::function<void(const v1::WorkerMessage&)>;
  // `send` may be called from several threads. `service` is borrowed.
  Worker(WorkerOptions options, ModelLoader loader, TensorService* service, Sender send);
  ~Worker();

  // Errors end the stream: the message breaks the protocol. CANCELLED after Shutdown.
  absl::Status Handle(const v1::CoordinatorMessage& message);

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace packtrain

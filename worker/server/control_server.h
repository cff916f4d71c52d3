#pragma once

// Serves the control stream and gRPC health, all in one thread: a step wakes nobody else. Work of
// any length is done by the engine's thread and by the worker's for requests.

#include <functional>
#include <memory>

#include "worker/server/worker.h"

namespace grpc {
class ServerBuilder;
}

namespace packtrain {

class ControlServer {
 public:
  // `tensors` is borrowed. `shutdown` is called when the coordinator says Shutdown.
  ControlServer(ModelLoader loader, TensorService* tensors, std::function<void()> shutdown);
  // REQUIRES: the gRPC server has been shut down and still exists.
  ~ControlServer();

  // Before the server starts.
  void Register(grpc::ServerBuilder* builder);
  // Once it has started: accepts coordinators, one at a time; a newer epoch ends the stream of an
  // older one.
  void Start(WorkerOptions options);

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace packtrain

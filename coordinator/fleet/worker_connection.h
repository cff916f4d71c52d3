#pragma once

// The coordinator's end of one worker's control stream (proto/control.proto), and its health.

#include <chrono>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/rpc/tls.h"

namespace packtrain {

namespace v1 {
class CoordinatorMessage;
class WorkerMessage;
}  // namespace v1

class WorkerConnection {
 public:
  // Called by the connection's thread.
  struct Events {
    // Everything that is not the answer to a Call: step results, progress, broken links.
    std::function<void(const v1::WorkerMessage&)> message;
    // Once, when the stream has ended by itself.
    std::function<void(const absl::Status&)> lost;
  };

  // Opens the stream; the worker need not listen yet. `tls` as for OpenChannel. UNAVAILABLE if it
  // does not until `deadline` or once `keep_waiting` (asked several times a second) says no.
  static absl::StatusOr<std::unique_ptr<WorkerConnection>> Connect(
      const std::string& address, const Tls* tls, Events events,
      std::chrono::steady_clock::time_point deadline, const std::function<bool()>& keep_waiting);
  // Ends the stream and waits for the connection's thread.
  ~WorkerConnection();

  // Any thread; does not wait. False if the stream is gone; the loss is reported by the event.
  bool Send(const v1::CoordinatorMessage& message);

  // Sends a request and waits for its answer: the message whose case number is `answer`. One call
  // at a time. Errors: what the worker says, UNAVAILABLE if it is gone, DEADLINE_EXCEEDED.
  absl::StatusOr<v1::WorkerMessage> Call(const v1::CoordinatorMessage& request, int answer,
                                         std::chrono::milliseconds timeout);
  // The same in two parts, for requests that several workers must answer together.
  void Begin(const v1::CoordinatorMessage& request, int answer);
  absl::StatusOr<v1::WorkerMessage> Finish(std::chrono::milliseconds timeout);

  // Any thread: ends the stream at once.
  void Abort();

  // Asks the health service, on a channel of its own.
  absl::Status CheckHealth(std::chrono::milliseconds timeout);

 private:
  class Impl;
  explicit WorkerConnection(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace packtrain

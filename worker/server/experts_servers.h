#pragma once

// The threads of an experts worker: one per stage that it serves, one computation at a time.

#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "common/base/mutex.h"
#include "worker/engine/experts.h"
#include "worker/transport/shm/mailbox.h"
#include "worker/transport/transport.h"

namespace packtrain {

class ExpertsServers {
 public:
  // `backend` is borrowed; `turn_cpu` as in TurnCpu.
  ExpertsServers(ExpertsBackend* backend, std::optional<int> turn_cpu);
  // Closes all and waits for the computation that is under way.
  ~ExpertsServers();

  void ServeMailbox(std::unique_ptr<MailboxServer> mailbox);
  void ServeLinks(std::unique_ptr<ReceiveLink> requests, std::unique_ptr<SendLink> replies,
                  std::chrono::milliseconds timeout);

 private:
  // The backend as one client's thread sees it. The CPU's threads serve one request at a time.
  class Turns;
  struct Client {
    std::unique_ptr<MailboxServer> mailbox;
    std::unique_ptr<ReceiveLink> requests;
    std::unique_ptr<SendLink> replies;
    std::thread thread;
  };

  ExpertsBackend* const backend_;
  const std::optional<int> turn_cpu_;
  Mutex mutex_;  // whose turn it is to compute
  std::vector<std::unique_ptr<Client>> clients_;
};

}  // namespace packtrain

#pragma once

// The threads of an experts worker: one per stage that it serves, one computation at a time.

#include <memory>
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
  // `backend` is borrowed.
  explicit ExpertsServers(ExpertsBackend* backend);
  // Closes all and waits for the computation that is under way.
  ~ExpertsServers();

  void ServeMailbox(std::unique_ptr<MailboxServer> mailbox);
  void ServeLinks(std::unique_ptr<ReceiveLink> requests, std::unique_ptr<SendLink> replies,
                  std::chrono::milliseconds timeout);

 private:
  // The CPU's threads serve one request at a time.
  class Serialised : public ExpertsBackend {
   public:
    explicit Serialised(ExpertsBackend* backend) : backend_(backend) {}
    absl::Status Compute(const ExpertsRequest& request, float* y) override;

   private:
    Mutex mutex_;
    ExpertsBackend* const backend_;
  };
  struct Client {
    std::unique_ptr<MailboxServer> mailbox;
    std::unique_ptr<ReceiveLink> requests;
    std::unique_ptr<SendLink> replies;
    std::thread thread;
  };

  Serialised backend_;
  std::vector<std::unique_ptr<Client>> clients_;
};

}  // namespace packtrain

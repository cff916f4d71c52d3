#pragma once

// The mailbox between a stage and an experts worker of one host: one request at a time in shared
// memory, announced by a sequence word made of (epoch, step, layer, piece) that is published after
// the data with release and read with acquire, so nothing stale can match. The stage's side is a
// thread, or a device by itself (DeviceMailbox).
//
// A request past its deadline is given up; its late reply carries an old word and matches nothing.
// The server trusts nothing that the mailbox says: sizes are checked, ids are copied before use.

#include <chrono>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "worker/engine/experts.h"
#include "worker/transport/shm/futex.h"
#include "worker/transport/shm/rendezvous.h"

namespace packtrain {

struct MailboxShape {
  int max_tokens = 0;
  int hidden_dim = 0;
  int top_k = 0;  // at most
};

struct MailboxHeader;

// The stage's end. One thread; Close from any.
class MailboxClient : public ExpertsClient {
 public:
  struct Options {
    uint64_t epoch = 0;
    std::chrono::nanoseconds spin{0};      // beyond the predicted arrival
    std::chrono::milliseconds timeout{0};  // from Post to reply
  };
  // Connects to the server on the channel `name`. Errors: UNAVAILABLE, RESOURCE_EXHAUSTED.
  static absl::StatusOr<std::unique_ptr<MailboxClient>> Connect(
      const std::string& name, const MailboxShape& shape, const Options& options,
      std::chrono::steady_clock::time_point deadline);
  ~MailboxClient() override;

  void BeginStep(uint64_t step_id) override;
  absl::Status Post(const ExpertsRequest& request) override;
  absl::Status Await(float* y) override;
  std::shared_ptr<DeviceMailbox> device_mailbox(int layer) override;
  std::chrono::nanoseconds waited() const override;
  ExpertsUse used() const override;
  void Close() override;

 private:
  class Device;
  MailboxClient(std::unique_ptr<SharedRegion> region, const MailboxShape& shape,
                const Options& options);

  // Shared with a stage whose device has registered the memory.
  const std::shared_ptr<SharedRegion> region_;
  MailboxHeader* const header_;
  const std::shared_ptr<Device> device_;
  const MailboxShape shape_;
  const Options options_;
  SpinPredictor spin_;
  uint64_t step_ = 0;
  uint64_t piece_ = 0;  // requests since BeginStep, so that two of one layer differ
  uint64_t sequence_ = 0;
  size_t reply_values_ = 0;
  std::chrono::steady_clock::time_point deadline_;
  ExpertsUse used_before_;  // this step
};

// The experts worker's end. One thread serves; Close from any.
class MailboxServer {
 public:
  // Listens on `name`; `shape` bounds what a client may ask for.
  static absl::StatusOr<std::unique_ptr<MailboxServer>> Listen(const std::string& name,
                                                               const MailboxShape& shape,
                                                               std::chrono::nanoseconds spin);
  ~MailboxServer();

  // Waits for the client and answers its requests until it goes (UNAVAILABLE) or Close
  // (CANCELLED). DATA_LOSS if the mailbox has another shape.
  absl::Status Serve(ExpertsBackend* backend);
  void Close();

 private:
  class Impl;
  explicit MailboxServer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace packtrain

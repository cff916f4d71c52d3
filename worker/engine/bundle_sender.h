#pragma once

// Sends bundles: large ones from a thread of its own, so that a stage can run the next step
// meanwhile; small ones at once, because waking that thread takes longer than sending them.

#include <chrono>
#include <deque>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include "common/base/mutex.h"
#include "worker/transport/transport.h"

namespace packtrain {

class BundleSender {
 public:
  // `on_error` is called by the thread that sends when the link breaks; bundles are dropped from
  // then.
  BundleSender(std::unique_ptr<SendLink> link, std::chrono::milliseconds timeout,
               std::function<void(const absl::Status&)> on_error);
  // Drops what was not sent.
  ~BundleSender();

  // A bundle to fill; waits while all are on their way, which the timeout bounds.
  Bundle* Acquire();
  // Sends an acquired bundle after all before it.
  void Send(Bundle* bundle);
  // Ends calls that wait; bundles are dropped from then. Any thread.
  void Close() { link_->Close(); }
  // Gives an acquired bundle back unsent.
  void Release(Bundle* bundle);
  // Acquires and sends an error for a step.
  void SendError(uint64_t epoch, uint64_t step_id, const absl::Status& error);

 private:
  void Run();
  // With sending_ taken.
  void SendNow(Bundle* bundle);

  const std::unique_ptr<SendLink> link_;
  const std::chrono::milliseconds timeout_;
  const std::function<void(const absl::Status&)> on_error_;
  std::vector<std::unique_ptr<Bundle>> bundles_;
  Mutex mutex_;
  CondVar changed_;
  std::vector<Bundle*> free_ ABSL_GUARDED_BY(mutex_);
  std::deque<Bundle*> queue_ ABSL_GUARDED_BY(mutex_);
  bool sending_ ABSL_GUARDED_BY(mutex_) = false;  // some thread is
  bool stop_ ABSL_GUARDED_BY(mutex_) = false;
  bool broken_ = false;  // of the thread that sends
  std::thread thread_;
};

}  // namespace packtrain

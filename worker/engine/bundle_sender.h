#pragma once

// Sends bundles from a thread of its own, so that a stage can run the next step meanwhile; those
// that the link takes at once, from the stage's.

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
  // `direct_from_bytes`: Bundle::device_from_bytes of all bundles. `on_error` is called by the
  // sending thread when the link breaks; bundles are dropped from then.
  BundleSender(std::unique_ptr<SendLink> link, std::chrono::milliseconds timeout,
               size_t direct_from_bytes, std::function<void(const absl::Status&)> on_error);
  // Drops what was not sent.
  ~BundleSender();

  // A bundle to fill; waits while all are on their way, which the timeout bounds.
  Bundle* Acquire();
  // Sends an acquired bundle after all before it.
  void Send(Bundle* bundle);
  // Gives an acquired bundle back unsent.
  void Release(Bundle* bundle);
  // Acquires and sends an error for a step.
  void SendError(uint64_t epoch, uint64_t step_id, const absl::Status& error);

 private:
  void Run();

  std::unique_ptr<SendLink> link_;
  const std::chrono::milliseconds timeout_;
  const std::function<void(const absl::Status&)> on_error_;
  std::vector<std::unique_ptr<Bundle>> bundles_;
  Mutex mutex_;
  CondVar changed_;
  std::vector<Bundle*> free_ ABSL_GUARDED_BY(mutex_);
  std::deque<Bundle*> queue_ ABSL_GUARDED_BY(mutex_);
  bool sending_ ABSL_GUARDED_BY(mutex_) = false;
  bool stop_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

}  // namespace packtrain

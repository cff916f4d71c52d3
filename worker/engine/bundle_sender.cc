#include "worker/engine/bundle_sender.h"

#include <utility>

namespace packtrain {

BundleSender::BundleSender(std::unique_ptr<SendLink> link, std::chrono::milliseconds timeout,
                           size_t direct_from_bytes,
                           std::function<void(const absl::Status&)> on_error)
    : link_(std::move(link)), timeout_(timeout), on_error_(std::move(on_error)) {
  for (int i = 0; i < kBundlesInFlight; ++i) {
    bundles_.push_back(std::make_unique<Bundle>());
    link_->Lend(bundles_.back().get());
    bundles_.back()->device_from_bytes = direct_from_bytes;
    free_.push_back(bundles_.back().get());
  }
  thread_ = std::thread([this] { Run(); });
}

BundleSender::~BundleSender() {
  {
    MutexLock lock(&mutex_);
    stop_ = true;
    changed_.NotifyAll();
  }
  link_->Close();
  thread_.join();
}

Bundle* BundleSender::Acquire() {
  MutexLock lock(&mutex_);
  while (free_.empty()) changed_.Wait(&mutex_);
  Bundle* bundle = free_.back();
  free_.pop_back();
  bundle->error = absl::OkStatus();
  return bundle;
}

void BundleSender::Send(Bundle* bundle) {
  MutexLock lock(&mutex_);
  if (queue_.empty() && !sending_ && link_->TrySend(*bundle)) {
    free_.push_back(bundle);
    return;
  }
  queue_.push_back(bundle);
  changed_.NotifyAll();
}

void BundleSender::Release(Bundle* bundle) {
  MutexLock lock(&mutex_);
  free_.push_back(bundle);
  changed_.NotifyAll();
}

void BundleSender::SendError(uint64_t epoch, uint64_t step_id, const absl::Status& error) {
  Bundle* bundle = Acquire();
  bundle->epoch = epoch;
  bundle->step_id = step_id;
  bundle->error = error;
  bundle->tensors.clear();
  Send(bundle);
}

void BundleSender::Run() {
  bool broken = false;
  while (true) {
    Bundle* bundle = nullptr;
    {
      MutexLock lock(&mutex_);
      while (queue_.empty() && !stop_) changed_.Wait(&mutex_);
      if (stop_) return;
      bundle = queue_.front();
      queue_.pop_front();
      sending_ = true;
    }
    if (!broken) {
      const absl::Status status = link_->Send(*bundle, std::chrono::steady_clock::now() + timeout_);
      if (!status.ok()) {
        broken = true;
        on_error_(status);
      }
    }
    MutexLock lock(&mutex_);
    sending_ = false;
    free_.push_back(bundle);
    changed_.NotifyAll();
  }
}

}  // namespace packtrain

#include "worker/transport/shm/shm_transport.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <utility>

#include "absl/strings/str_format.h"
#include "common/base/mutex.h"
#include "common/base/status_macros.h"
#include "proto/tensor.pb.h"
#include "worker/transport/bundle_codec.h"
#include "worker/transport/shm/rendezvous.h"
#include "worker/transport/shm/ring.h"

namespace packtrain {
namespace {

using Clock = std::chrono::steady_clock;

// Room for two bundles of decode steps, so that a sender need not wait for a receiver that is one
// step behind. Larger bundles pass in pieces; the ring stays in the processors' caches.
constexpr size_t kRingBytesMin = 256 << 10;
constexpr size_t kRingBytesMax = 4 << 20;
// What is copied sooner than another thread has woken up to do it.
constexpr size_t kTrySendBytesMax = 256 << 10;

size_t RingBytes(size_t max_bytes) {
  return std::clamp(2 * max_bytes + 4 * kMaxBundleHeaderBytes, kRingBytesMin, kRingBytesMax) &
         ~size_t{4095};
}

class ShmSendLink : public SendLink {
 public:
  ShmSendLink(std::unique_ptr<ShmRing> ring, size_t max_bytes)
      : ring_(std::move(ring)), max_bytes_(max_bytes) {}
  ~ShmSendLink() override { ring_->Close(); }

  absl::Status Send(const Bundle& bundle, Clock::time_point deadline) override {
    ASSIGN_OR_RETURN(const size_t bytes, CheckBundle(bundle, max_bytes_));
    const absl::Status status = Write(bundle, deadline);
    if (!status.ok()) {
      ring_->Close();
      return status;
    }
    bundles_.fetch_add(1, std::memory_order_relaxed);
    bytes_.fetch_add(bytes, std::memory_order_relaxed);
    return absl::OkStatus();
  }
  bool TrySend(const Bundle& bundle) override {
    const absl::StatusOr<size_t> bytes = CheckBundle(bundle, max_bytes_);
    if (!bytes.ok() || *bytes > kTrySendBytesMax ||
        *bytes + kMaxBundleHeaderBytes + sizeof(uint32_t) > ring_->room()) {
      return false;
    }
    return Send(bundle, Clock::time_point::max()).ok();
  }
  void Close() override { ring_->Close(); }
  LinkStats stats() const override { return {bundles_.load(), bytes_.load()}; }

 private:
  absl::Status Write(const Bundle& bundle, Clock::time_point deadline) {
    v1::BundleHeader header;
    EncodeBundleHeader(bundle, &header);
    header_.resize(sizeof(uint32_t) + header.ByteSizeLong());
    const uint32_t size = static_cast<uint32_t>(header_.size() - sizeof(uint32_t));
    std::memcpy(header_.data(), &size, sizeof size);
    header.SerializeToArray(header_.data() + sizeof size, static_cast<int>(size));
    RETURN_IF_ERROR(ring_->Write(header_.data(), header_.size(), deadline));
    for (const BundleTensor& t : bundle.tensors) {
      RETURN_IF_ERROR(ring_->Write(t.data.data(), t.data.size(), deadline));
    }
    ring_->Flush();
    return absl::OkStatus();
  }

  std::unique_ptr<ShmRing> ring_;
  const size_t max_bytes_;
  std::string header_;
  std::atomic<uint64_t> bundles_{0}, bytes_{0};
};

class ShmReceiveLink : public ReceiveLink {
 public:
  ShmReceiveLink(std::unique_ptr<RegionListener> listener, size_t max_bytes, uint64_t epoch,
                 std::chrono::nanoseconds spin)
      : listener_(std::move(listener)), max_bytes_(max_bytes), epoch_(epoch), spin_(spin) {}
  ~ShmReceiveLink() override { Close(); }

  absl::Status Receive(Bundle* bundle, Clock::time_point deadline) override {
    RETURN_IF_ERROR(WaitConnected(deadline));
    while (true) {
      {
        MutexLock lock(&mutex_);
        if (closed_) return absl::UnavailableError("the link is closed");
      }
      RETURN_IF_ERROR(ReceiveOne(bundle, deadline));
      if (bundle->epoch >= epoch_) return absl::OkStatus();
    }
  }

  void Close() override {
    MutexLock lock(&mutex_);
    closed_ = true;
    if (ring_ != nullptr) ring_->Close();
  }
  LinkStats stats() const override { return {bundles_.load(), bytes_.load()}; }

 private:
  absl::Status WaitConnected(Clock::time_point deadline) {
    // In slices, so that Close is noticed.
    constexpr std::chrono::milliseconds kSlice(20);
    while (listener_ != nullptr) {
      {
        MutexLock lock(&mutex_);
        if (closed_) return absl::UnavailableError("the link is closed");
      }
      const Clock::time_point slice = std::min(deadline, Clock::now() + kSlice);
      auto region = listener_->Accept(ShmRing::RegionBytes(kRingBytesMax), slice);
      if (absl::IsDeadlineExceeded(region.status()) && slice < deadline) continue;
      RETURN_IF_ERROR(region.status());
      ASSIGN_OR_RETURN(auto ring, ShmRing::Attach(*std::move(region), spin_));
      listener_ = nullptr;
      MutexLock lock(&mutex_);
      if (closed_) ring->Close();
      ring_ = std::move(ring);
    }
    return absl::OkStatus();
  }

  absl::Status ReceiveOne(Bundle* bundle, Clock::time_point deadline) {
    uint32_t size = 0;
    RETURN_IF_ERROR(ring_->Read(&size, sizeof size, deadline));
    const auto bytes = ReadBundle(size, bundle, deadline);
    if (!bytes.ok()) {
      Close();
      return bytes.status();
    }
    bundles_.fetch_add(1, std::memory_order_relaxed);
    bytes_.fetch_add(*bytes, std::memory_order_relaxed);
    return absl::OkStatus();
  }

  absl::StatusOr<size_t> ReadBundle(uint32_t header_bytes, Bundle* bundle,
                                    Clock::time_point deadline) {
    if (header_bytes > kMaxBundleHeaderBytes) {
      return absl::DataLossError(absl::StrFormat("bundle header of %d bytes, allowed are %d",
                                                 header_bytes, kMaxBundleHeaderBytes));
    }
    header_.resize(header_bytes);
    RETURN_IF_ERROR(ring_->Read(header_.data(), header_.size(), deadline));
    v1::BundleHeader header;
    if (!header.ParseFromString(header_)) return absl::DataLossError("broken bundle header");
    ASSIGN_OR_RETURN(const size_t bytes, ShapeBundle(header, max_bytes_, bundle));
    for (BundleTensor& t : bundle->tensors) {
      RETURN_IF_ERROR(ring_->Read(t.data.data(), t.data.size(), deadline));
    }
    return bytes;
  }

  std::unique_ptr<RegionListener> listener_;  // until the sender has connected
  const size_t max_bytes_;
  const uint64_t epoch_;
  const std::chrono::nanoseconds spin_;
  std::string header_;
  Mutex mutex_;
  std::unique_ptr<ShmRing> ring_;  // written under the mutex by the receiving thread only
  bool closed_ ABSL_GUARDED_BY(mutex_) = false;
  std::atomic<uint64_t> bundles_{0}, bytes_{0};
};

class ShmTransport : public Transport {
 public:
  explicit ShmTransport(std::chrono::nanoseconds spin) : spin_(spin) {}

  std::string_view name() const override { return "shm"; }

  bool CanConnect(const PeerInfo& self, const PeerInfo& peer) const override {
    return !self.host_id.empty() && self.host_id == peer.host_id;
  }

  absl::StatusOr<std::unique_ptr<SendLink>> OpenSend(const ChannelId& channel, const PeerInfo& peer,
                                                     size_t max_bytes) override {
    const size_t region_bytes = ShmRing::RegionBytes(RingBytes(max_bytes));
    ASSIGN_OR_RETURN(auto region, ShareRegion(ShmChannelName(channel, peer.epoch), region_bytes,
                                              Clock::now() + kOpenTimeout, [=](std::byte* data) {
                                                ShmRing::Initialize(data, region_bytes);
                                              }));
    ASSIGN_OR_RETURN(auto ring, ShmRing::Attach(std::move(region), spin_));
    return std::make_unique<ShmSendLink>(std::move(ring), max_bytes);
  }

  absl::StatusOr<std::unique_ptr<ReceiveLink>> OpenReceive(const ChannelId& channel,
                                                           const PeerInfo& peer,
                                                           size_t max_bytes) override {
    ASSIGN_OR_RETURN(auto listener, RegionListener::Listen(ShmChannelName(channel, peer.epoch)));
    return std::make_unique<ShmReceiveLink>(std::move(listener), max_bytes, peer.epoch, spin_);
  }

 private:
  const std::chrono::nanoseconds spin_;
};

}  // namespace

std::string ShmChannelName(const ChannelId& channel, uint64_t epoch) {
  // Hashed because a socket name has room for 107 bytes only.
  uint64_t hash = 0xcbf29ce484222325;
  for (const std::string* part : {&channel.from, &channel.to, &channel.name}) {
    for (const char c : *part) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3;
    hash = (hash ^ 0xff) * 0x100000001b3;
  }
  return absl::StrFormat("packtrain/%d/%016x", epoch, hash);
}

std::unique_ptr<Transport> MakeShmTransport(std::chrono::nanoseconds spin) {
  return std::make_unique<ShmTransport>(spin);
}

}  // namespace packtrain

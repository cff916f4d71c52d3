#include "worker/transport/nccl/nccl_transport.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>
#include <thread>
#include <utility>

#include "absl/strings/str_format.h"
#include "common/base/mutex.h"
#include "common/base/status_macros.h"
#include "worker/device/cuda/cuda_memory.h"
#include "worker/transport/nccl/nccl_comm.h"

namespace packtrain {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::string_view kId = "nccl.id";
constexpr std::string_view kRows = "nccl.rows";
constexpr size_t kAlignment = 256;
constexpr uint32_t kDeviceTensorsMax = 4;

class NcclSendLink : public SendLink {
 public:
  NcclSendLink(std::unique_ptr<SendLink> carrier, int device, uint64_t epoch, size_t max_bytes)
      : carrier_(std::move(carrier)), device_(device), epoch_(epoch), max_bytes_(max_bytes) {}
  ~NcclSendLink() override {
    comm_ = nullptr;  // before its memory goes
    cudaSetDevice(device_);
  }

  absl::Status Open(Clock::time_point deadline) {
    RETURN_IF_CUDA(cudaSetDevice(device_));
    for (std::byte*& lent : lent_) memory_.Add(&lent, max_bytes_);
    RETURN_IF_ERROR(memory_.Allocate("an NCCL link", false));
    ASSIGN_OR_RETURN(const NcclComm::Id id, NcclComm::NewId());
    Bundle hello;
    hello.epoch = epoch_;
    BundleTensor* tensor = hello.Shape(0, kId, ElementType::kU8, 1, id.size());
    std::memcpy(tensor->data.data(), id.data(), id.size());
    RETURN_IF_ERROR(carrier_->Send(hello, deadline));
    ASSIGN_OR_RETURN(comm_, NcclComm::Join(id, 0, device_, &closed_, deadline));
    return absl::OkStatus();
  }

  void Lend(Bundle* bundle) override {
    if (num_lent_ < lent_.size()) bundle->device_memory = {lent_[num_lent_++], max_bytes_};
  }

  absl::Status Send(const Bundle& bundle, Clock::time_point deadline) override {
    // The receiver would drop it, and could not tell its payload from the next.
    if (bundle.epoch < epoch_) return absl::OkStatus();
    const absl::Status status = SendAll(bundle, deadline);
    if (!status.ok()) Close();
    return status;
  }
  bool TrySend(const Bundle& bundle) override {
    if (bundle.epoch < epoch_ || !InHostMemory(bundle) || !carrier_->TrySend(bundle)) return false;
    Count(bundle);
    return true;
  }
  void Close() override {
    closed_ = true;
    carrier_->Close();
  }
  LinkStats stats() const override { return {bundles_.load(), bytes_.load()}; }

 private:
  static bool InHostMemory(const Bundle& bundle) {
    return std::all_of(bundle.tensors.begin(), bundle.tensors.end(),
                       [](const BundleTensor& t) { return t.device == nullptr; });
  }
  void Count(const Bundle& bundle) {
    uint64_t bytes = 0;
    for (const BundleTensor& t : bundle.tensors) bytes += t.bytes();
    bundles_.fetch_add(1, std::memory_order_relaxed);
    bytes_.fetch_add(bytes, std::memory_order_relaxed);
  }

  absl::Status SendAll(const Bundle& bundle, Clock::time_point deadline) {
    if (InHostMemory(bundle)) {
      RETURN_IF_ERROR(carrier_->Send(bundle, deadline));
      Count(bundle);
      return absl::OkStatus();
    }
    envelope_.epoch = bundle.epoch;
    envelope_.step_id = bundle.step_id;
    envelope_.error = bundle.error;
    envelope_.tensors.resize(bundle.tensors.size());
    std::vector<int32_t> on_device;
    for (size_t i = 0; i < bundle.tensors.size(); ++i) {
      const BundleTensor& t = bundle.tensors[i];
      if (t.device == nullptr) {
        envelope_.tensors[i] = t;
        continue;
      }
      envelope_.Shape(i, t.name, t.type, 0, t.cols);
      on_device.push_back(static_cast<int32_t>(i));
      on_device.push_back(static_cast<int32_t>(t.rows));
    }
    BundleTensor* rows = envelope_.Shape(bundle.tensors.size(), kRows, ElementType::kI32,
                                         static_cast<uint32_t>(on_device.size() / 2), 2);
    std::memcpy(rows->data.data(), on_device.data(), rows->data.size());
    RETURN_IF_ERROR(carrier_->Send(envelope_, deadline));
    for (const BundleTensor& t : bundle.tensors) {
      if (t.device == nullptr || t.bytes() == 0) continue;
      RETURN_IF_ERROR(comm_->Send(t.device, t.bytes(), deadline));
    }
    Count(bundle);
    return absl::OkStatus();
  }

  const std::unique_ptr<SendLink> carrier_;
  const int device_;
  const uint64_t epoch_;
  const size_t max_bytes_;
  std::atomic<bool> closed_{false};
  DevicePlan memory_;
  std::array<std::byte*, kBundlesInFlight> lent_{};
  size_t num_lent_ = 0;
  std::unique_ptr<NcclComm> comm_;
  Bundle envelope_;
  std::atomic<uint64_t> bundles_{0}, bytes_{0};
};

class NcclReceiveLink : public ReceiveLink {
 public:
  NcclReceiveLink(std::unique_ptr<ReceiveLink> carrier, int device, size_t max_bytes)
      : carrier_(std::move(carrier)), device_(device), max_bytes_(max_bytes) {
    opener_ = std::thread([this] {
      const absl::Status status = Open();
      MutexLock lock(&mutex_);
      status_ = status;
      opened_ = true;
      changed_.NotifyAll();
    });
  }
  ~NcclReceiveLink() override {
    if (!opened()) Close();  // an open one may still be flushed
    opener_.join();
    comm_ = nullptr;
    cudaSetDevice(device_);
  }

  absl::Status Receive(Bundle* bundle, Clock::time_point deadline) override {
    RETURN_IF_ERROR(WaitOpened(deadline));
    if (closed_) return absl::UnavailableError("the link is closed");
    RETURN_IF_ERROR(carrier_->Receive(bundle, deadline));
    const absl::Status status = ReceivePayload(bundle, deadline);
    if (!status.ok()) Close();
    return status;
  }
  void Close() override {
    closed_ = true;
    carrier_->Close();
    MutexLock lock(&mutex_);
    changed_.NotifyAll();
  }
  LinkStats stats() const override { return {bundles_.load(), bytes_.load()}; }

 private:
  // The opening thread: waits for the sender, however late it comes.
  absl::Status Open() {
    constexpr std::chrono::milliseconds kSlice(100);
    Bundle hello;
    absl::Status status;
    do {
      status = carrier_->Receive(&hello, Clock::now() + kSlice);
    } while (absl::IsDeadlineExceeded(status) && !closed_);
    RETURN_IF_ERROR(status);
    const BundleTensor* tensor = hello.Find(kId);
    NcclComm::Id id;
    if (tensor == nullptr || tensor->data.size() != id.size()) {
      return absl::DataLossError("the sender's first bundle has no NCCL id");
    }
    std::memcpy(id.data(), tensor->data.data(), id.size());
    RETURN_IF_CUDA(cudaSetDevice(device_));
    memory_.Add(&payload_, max_bytes_ + kAlignment * kDeviceTensorsMax);
    RETURN_IF_ERROR(memory_.Allocate("an NCCL link", false));
    ASSIGN_OR_RETURN(comm_, NcclComm::Join(id, 1, device_, &closed_, Clock::now() + kOpenTimeout));
    return absl::OkStatus();
  }

  bool opened() {
    MutexLock lock(&mutex_);
    return opened_;
  }
  absl::Status WaitOpened(Clock::time_point deadline) {
    MutexLock lock(&mutex_);
    while (!opened_ && !closed_) {
      if (!changed_.WaitUntil(&mutex_, deadline) && !opened_ && Clock::now() >= deadline) {
        return absl::DeadlineExceededError("nothing came in time");
      }
    }
    return opened_ ? status_ : absl::UnavailableError("the link is closed");
  }

  absl::Status ReceivePayload(Bundle* bundle, Clock::time_point deadline) {
    size_t bytes = 0, used = 0;
    if (!bundle->tensors.empty() && bundle->tensors.back().name == kRows) {
      const BundleTensor rows = std::move(bundle->tensors.back());
      bundle->tensors.pop_back();
      if (rows.type != ElementType::kI32 || rows.cols != 2 || rows.rows > kDeviceTensorsMax) {
        return absl::DataLossError("broken list of tensors that come by NCCL");
      }
      for (uint32_t i = 0; i < rows.rows; ++i) {
        const auto index = static_cast<size_t>(rows.i32()[2 * i]);
        const int32_t count = rows.i32()[2 * i + 1];
        if (index >= bundle->tensors.size() || count < 0) {
          return absl::DataLossError("broken list of tensors that come by NCCL");
        }
        BundleTensor& t = bundle->tensors[index];
        t.rows = static_cast<uint32_t>(count);
        t.data.clear();
        t.device = payload_ + used;
        // Rows first: times their size the product could pass 64 bits.
        if (t.rows > max_bytes_ || t.bytes() > max_bytes_ - std::min(bytes, max_bytes_)) {
          return absl::DataLossError(
              absl::StrFormat("bundle of more than the %d bytes that the link allows", max_bytes_));
        }
        bytes += t.bytes();
        used += (t.bytes() + kAlignment - 1) / kAlignment * kAlignment;
        if (t.bytes() > 0) RETURN_IF_ERROR(comm_->Receive(t.device, t.bytes(), deadline));
      }
    }
    for (const BundleTensor& t : bundle->tensors) bytes += t.data.size();
    bundles_.fetch_add(1, std::memory_order_relaxed);
    bytes_.fetch_add(bytes, std::memory_order_relaxed);
    return absl::OkStatus();
  }

  const std::unique_ptr<ReceiveLink> carrier_;
  const int device_;
  const size_t max_bytes_;
  std::atomic<bool> closed_{false};
  DevicePlan memory_;
  std::byte* payload_ = nullptr;
  std::unique_ptr<NcclComm> comm_;  // the opening thread's until opened_
  Mutex mutex_;
  CondVar changed_;
  bool opened_ ABSL_GUARDED_BY(mutex_) = false;
  absl::Status status_ ABSL_GUARDED_BY(mutex_);
  std::thread opener_;
  std::atomic<uint64_t> bundles_{0}, bytes_{0};
};

class NcclTransport : public Transport {
 public:
  NcclTransport(int device, const PeerInfo& self, std::vector<Transport*> carriers)
      : device_(device), self_(self), carriers_(std::move(carriers)) {}

  std::string_view name() const override { return "nccl"; }

  bool CanConnect(const PeerInfo& self, const PeerInfo& peer) const override {
    return !self.nccl.empty() && self.nccl == peer.nccl && self.gpu != peer.gpu &&
           Carrier(self, peer) != nullptr;
  }

  absl::StatusOr<std::unique_ptr<SendLink>> OpenSend(const ChannelId& channel, const PeerInfo& peer,
                                                     size_t max_bytes) override {
    ASSIGN_OR_RETURN(Transport * carrier, CarrierTo(peer));
    ASSIGN_OR_RETURN(auto rest, carrier->OpenSend(channel, peer, max_bytes));
    auto link = std::make_unique<NcclSendLink>(std::move(rest), device_, peer.epoch, max_bytes);
    RETURN_IF_ERROR(link->Open(Clock::now() + kOpenTimeout));
    return link;
  }

  absl::StatusOr<std::unique_ptr<ReceiveLink>> OpenReceive(const ChannelId& channel,
                                                           const PeerInfo& peer,
                                                           size_t max_bytes) override {
    ASSIGN_OR_RETURN(Transport * carrier, CarrierTo(peer));
    ASSIGN_OR_RETURN(auto rest, carrier->OpenReceive(channel, peer, max_bytes));
    return std::make_unique<NcclReceiveLink>(std::move(rest), device_, max_bytes);
  }

 private:
  Transport* Carrier(const PeerInfo& self, const PeerInfo& peer) const {
    for (Transport* carrier : carriers_) {
      if (carrier->CanConnect(self, peer)) return carrier;
    }
    return nullptr;
  }
  absl::StatusOr<Transport*> CarrierTo(const PeerInfo& peer) const {
    if (CanConnect(self_, peer)) return Carrier(self_, peer);
    return absl::FailedPreconditionError(
        absl::StrFormat("NCCL cannot join %s (version '%s') and %s (version '%s')", self_.worker_id,
                        self_.nccl, peer.worker_id, peer.nccl));
  }

  const int device_;
  const PeerInfo self_;
  const std::vector<Transport*> carriers_;
};

}  // namespace

std::unique_ptr<Transport> MakeNcclTransport(int device, const PeerInfo& self,
                                             std::vector<Transport*> carriers) {
  return std::make_unique<NcclTransport>(device, self, std::move(carriers));
}

}  // namespace packtrain

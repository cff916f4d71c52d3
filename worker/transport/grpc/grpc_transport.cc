#include "worker/transport/grpc/grpc_transport.h"

#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/base/status_macros.h"
#include "common/rpc/channel.h"
#include "common/rpc/status.h"
#include "proto/tensor.pb.h"
#include "worker/transport/bundle_codec.h"
#include "worker/transport/frame_assembler.h"

namespace packtrain {
namespace {

using Clock = std::chrono::steady_clock;

std::chrono::system_clock::time_point SystemTime(Clock::time_point deadline) {
  return std::chrono::system_clock::now() +
         std::chrono::duration_cast<std::chrono::system_clock::duration>(deadline - Clock::now());
}

// A call whose completion queue is pumped by the thread that sends: no hand-over between threads.
class GrpcSendLink : public SendLink {
 public:
  GrpcSendLink(std::shared_ptr<grpc::Channel> channel, size_t max_bytes)
      : channel_(std::move(channel)), stub_(channel_), max_bytes_(max_bytes) {}

  ~GrpcSendLink() override {
    EndGracefully();
    context_.TryCancel();
    if (call_ != nullptr) {
      const auto forever = Clock::now() + std::chrono::hours(1);
      while (starting_ || writing_ || reading_) {
        if (!Next(forever).ok()) break;
      }
      call_->Finish(&finish_status_, Tag(Event::kFinished));
    }
    queue_.Shutdown();
    void* tag = nullptr;
    bool ok = false;
    while (queue_.Next(&tag, &ok)) {
    }
  }

  // Waits for the receiver's first grant. NOT_FOUND if the receiver does not expect us yet.
  absl::Status Open(const ChannelId& channel, uint64_t epoch, Clock::time_point deadline) {
    context_.AddMetadata("packtrain-from", channel.from);
    context_.AddMetadata("packtrain-to", channel.to);
    context_.AddMetadata("packtrain-channel", channel.name);
    context_.AddMetadata("packtrain-epoch", absl::StrCat(epoch));
    call_ = stub_.PrepareCall(&context_, kTensorMethod, &queue_);
    starting_ = true;
    call_->StartCall(Tag(Event::kStarted));
    const absl::Status status = Pump(deadline, [this] { return credits_ > 0; });
    if (!absl::IsUnavailable(status)) return status;
    while (starting_ || writing_ || reading_) RETURN_IF_ERROR(Next(deadline));
    finished_ = false;
    call_->Finish(&finish_status_, Tag(Event::kFinished));
    while (!finished_) RETURN_IF_ERROR(Next(deadline));
    call_ = nullptr;
    return FromGrpc(finish_status_);
  }

  absl::Status Send(const Bundle& bundle, Clock::time_point deadline) override {
    ASSIGN_OR_RETURN(const size_t bytes, CheckBundle(bundle, max_bytes_));
    const absl::Status status = SendFrames(bundle, bytes, deadline);
    if (!status.ok()) {
      // gRPC may still refer to the bundle's memory until the write has ended.
      context_.TryCancel();
      while (writing_ && Next(Clock::now() + std::chrono::hours(1)).ok()) {
      }
      return status;
    }
    bundles_.fetch_add(1, std::memory_order_relaxed);
    bytes_.fetch_add(bytes, std::memory_order_relaxed);
    return absl::OkStatus();
  }

  void Close() override { context_.TryCancel(); }
  LinkStats stats() const override { return {bundles_.load(), bytes_.load()}; }

 private:
  // Cancelling a call may take back bundles that the receiver has not read yet.
  void EndGracefully() {
    if (call_ == nullptr || broken_ || starting_ || writing_) return;
    writing_ = true;
    call_->WritesDone(Tag(Event::kWritten));
    const auto deadline = Clock::now() + std::chrono::seconds(1);
    while ((writing_ || reading_) && Next(deadline).ok()) {
    }
  }

  enum class Event : intptr_t { kStarted = 1, kWritten, kRead, kFinished };
  static void* Tag(Event event) { return reinterpret_cast<void*>(event); }

  // Handles one completion. Errors: DEADLINE_EXCEEDED.
  absl::Status Next(Clock::time_point deadline) {
    void* tag = nullptr;
    bool ok = false;
    if (queue_.AsyncNext(&tag, &ok, SystemTime(deadline)) != grpc::CompletionQueue::GOT_EVENT) {
      return absl::DeadlineExceededError("the receiver is too slow");
    }
    if (!ok) broken_ = true;
    switch (static_cast<Event>(reinterpret_cast<intptr_t>(tag))) {
      case Event::kStarted:
        starting_ = false;
        if (ok) StartRead();
        break;
      case Event::kWritten:
        writing_ = false;
        written_ = ok;
        break;
      case Event::kRead:
        reading_ = false;
        if (ok) TakeCredit();
        break;
      case Event::kFinished:
        finished_ = true;
        break;
    }
    return absl::OkStatus();
  }

  template <typename Condition>
  absl::Status Pump(Clock::time_point deadline, const Condition& condition) {
    while (!condition()) {
      if (broken_) return absl::UnavailableError("the receiver is gone");
      RETURN_IF_ERROR(Next(deadline));
    }
    return broken_ ? absl::UnavailableError("the receiver is gone") : absl::OkStatus();
  }

  void StartRead() {
    reading_ = true;
    call_->Read(&credit_, Tag(Event::kRead));
  }

  void TakeCredit() {
    std::vector<grpc::Slice> slices;
    v1::Credit credit;
    std::string bytes;
    if (credit_.Dump(&slices).ok()) {
      for (const grpc::Slice& s : slices) {
        bytes.append(reinterpret_cast<const char*>(s.begin()), s.size());
      }
    }
    constexpr uint32_t kMaxCredits = 1024;
    if (!credit.ParseFromString(bytes) || credit.frames() > kMaxCredits) {
      broken_ = true;
      return;
    }
    credits_ += credit.frames();
    StartRead();
  }

  absl::Status SendFrames(const Bundle& bundle, size_t bytes, Clock::time_point deadline) {
    size_t left = bytes, tensor = 0, offset = 0;
    bool first = true;
    do {
      v1::FrameHeader header;
      if (first) EncodeBundleHeader(bundle, header.mutable_bundle());
      first = false;
      size_t room = std::min(left, kFrameBytesMax);
      left -= room;
      header.set_last(left == 0);
      std::string head(sizeof(uint32_t), '\0');
      header.AppendToString(&head);
      const uint32_t size = static_cast<uint32_t>(head.size() - sizeof(uint32_t));
      std::memcpy(head.data(), &size, sizeof size);
      std::vector<grpc::Slice> slices;
      slices.emplace_back(head);
      while (room > 0) {
        const BundleTensor& t = bundle.tensors[tensor];
        const size_t piece = std::min(room, t.data.size() - offset);
        if (piece > 0) {
          slices.emplace_back(t.data.data() + offset, piece, grpc::Slice::STATIC_SLICE);
        }
        room -= piece;
        offset += piece;
        if (offset == t.data.size()) {
          ++tensor;
          offset = 0;
        }
      }
      RETURN_IF_ERROR(SendFrame(grpc::ByteBuffer(slices.data(), slices.size()), deadline));
    } while (left > 0);
    return absl::OkStatus();
  }

  absl::Status SendFrame(const grpc::ByteBuffer& frame, Clock::time_point deadline) {
    RETURN_IF_ERROR(Pump(deadline, [this] { return credits_ > 0; }));
    --credits_;
    writing_ = true;
    // Through to the socket: the slices refer to the bundle, which is the caller's again after
    // this.
    call_->Write(frame, grpc::WriteOptions().set_write_through(), Tag(Event::kWritten));
    // The receiver may take the frame and go: what counts is this write.
    while (writing_) RETURN_IF_ERROR(Next(deadline));
    return written_ ? absl::OkStatus() : absl::UnavailableError("the receiver is gone");
  }

  const std::shared_ptr<grpc::Channel> channel_;
  grpc::GenericStub stub_;
  const size_t max_bytes_;
  grpc::ClientContext context_;
  grpc::CompletionQueue queue_;
  std::unique_ptr<grpc::GenericClientAsyncReaderWriter> call_;
  grpc::ByteBuffer credit_;
  grpc::Status finish_status_;
  uint32_t credits_ = 0;
  bool starting_ = false, writing_ = false, written_ = false, reading_ = false;
  bool finished_ = false, broken_ = false;
  std::atomic<uint64_t> bundles_{0}, bytes_{0};
};

class GrpcTransport : public Transport {
 public:
  GrpcTransport(TensorService* service, std::shared_ptr<const Tls> tls)
      : service_(service), tls_(std::move(tls)) {}

  std::string_view name() const override { return "grpc"; }

  bool CanConnect(const PeerInfo& self, const PeerInfo& peer) const override {
    const auto is_unix = [](const PeerInfo& p) { return p.data_address.starts_with("unix:"); };
    if (peer.data_address.empty()) return false;
    return self.host_id == peer.host_id || (!is_unix(self) && !is_unix(peer));
  }

  absl::StatusOr<std::unique_ptr<SendLink>> OpenSend(const ChannelId& channel, const PeerInfo& peer,
                                                     size_t max_bytes) override {
    const Clock::time_point deadline = Clock::now() + kOpenTimeout;
    const auto grpc_channel = OpenChannel(peer.data_address, tls_.get());
    while (true) {
      auto link = std::make_unique<GrpcSendLink>(grpc_channel, max_bytes);
      const absl::Status status = link->Open(channel, peer.epoch, deadline);
      if (status.ok()) return link;
      if (Clock::now() >= deadline || absl::IsDeadlineExceeded(status)) {
        const std::string why = DiagnoseConnection(peer.data_address, tls_.get());
        return absl::UnavailableError(
            absl::StrFormat("channel '%s' to '%s' at %s: %s", channel.name, channel.to,
                            peer.data_address, why.empty() ? std::string(status.message()) : why));
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
  }

  absl::StatusOr<std::unique_ptr<ReceiveLink>> OpenReceive(const ChannelId& channel,
                                                           const PeerInfo& peer,
                                                           size_t max_bytes) override {
    return service_->Expect(channel, peer.epoch, max_bytes);
  }

 private:
  TensorService* const service_;
  const std::shared_ptr<const Tls> tls_;
};

}  // namespace

std::unique_ptr<Transport> MakeGrpcTransport(TensorService* service,
                                             std::shared_ptr<const Tls> tls) {
  return std::make_unique<GrpcTransport>(service, std::move(tls));
}

}  // namespace packtrain

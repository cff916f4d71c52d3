#include "worker/transport/grpc/tensor_service.h"

#include <grpcpp/generic/async_generic_service.h>
#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <atomic>
#include <deque>
#include <map>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/base/mutex.h"
#include "common/base/status_macros.h"
#include "proto/tensor.pb.h"
#include "worker/transport/frame_assembler.h"

namespace packtrain {
namespace {

using Clock = std::chrono::steady_clock;

grpc::ByteBuffer CreditMessage(uint32_t frames) {
  v1::Credit credit;
  credit.set_frames(frames);
  const grpc::Slice slice(credit.SerializeAsString());
  return grpc::ByteBuffer(&slice, 1);
}

// Where gRPC's threads leave frames and the link's thread takes them. Shared by the two.
class Inbox {
 public:
  class Stream {
   public:
    virtual ~Stream() = default;
    virtual void Grant(uint32_t frames) = 0;
    virtual void End() = 0;
  };

  // gRPC's side. False if another sender has the channel or the link is closed.
  bool Connect(Stream* stream) {
    MutexLock lock(&mutex_);
    if (stream_ != nullptr || connected_ || closed_) return false;
    connected_ = true;
    stream_ = stream;
    return true;
  }
  // False if the sender sent more than it was granted.
  bool Push(grpc::ByteBuffer frame) {
    MutexLock lock(&mutex_);
    if (frames_.size() >= kFrameWindow) return false;
    frames_.push_back(std::move(frame));
    arrived_.NotifyOne();
    return true;
  }
  void SenderGone() {
    MutexLock lock(&mutex_);
    gone_ = true;
    arrived_.NotifyAll();
  }
  void Disconnect() {
    MutexLock lock(&mutex_);
    stream_ = nullptr;
    gone_ = true;
    arrived_.NotifyAll();
  }

  // The link's side.
  absl::StatusOr<grpc::ByteBuffer> Pop(Clock::time_point deadline) {
    MutexLock lock(&mutex_);
    while (frames_.empty() || closed_) {
      if (closed_) return absl::UnavailableError("the link is closed");
      if (gone_) return absl::UnavailableError("the sender is gone");
      if (!arrived_.WaitUntil(&mutex_, deadline) && frames_.empty() && !gone_ && !closed_) {
        return absl::DeadlineExceededError("nothing came in time");
      }
    }
    grpc::ByteBuffer frame = std::move(frames_.front());
    frames_.pop_front();
    // In batches: a credit costs a message.
    if (++taken_ >= kFrameWindow / 2 && stream_ != nullptr) {
      stream_->Grant(taken_);
      taken_ = 0;
    }
    return frame;
  }
  void Close() {
    MutexLock lock(&mutex_);
    closed_ = true;
    if (stream_ != nullptr) stream_->End();
    arrived_.NotifyAll();
  }

 private:
  Mutex mutex_;
  CondVar arrived_;
  std::deque<grpc::ByteBuffer> frames_ ABSL_GUARDED_BY(mutex_);
  Stream* stream_ ABSL_GUARDED_BY(mutex_) = nullptr;
  uint32_t taken_ ABSL_GUARDED_BY(mutex_) = 0;
  bool connected_ ABSL_GUARDED_BY(mutex_) = false;
  bool gone_ ABSL_GUARDED_BY(mutex_) = false;
  bool closed_ ABSL_GUARDED_BY(mutex_) = false;
};

// One sender's call. Deletes itself when gRPC is done with it.
class SendCall : public grpc::ServerGenericBidiReactor, public Inbox::Stream {
 public:
  explicit SendCall(std::shared_ptr<Inbox> inbox) {
    if (inbox == nullptr || !inbox->Connect(this)) {
      Finish(grpc::Status(grpc::StatusCode::NOT_FOUND, "channel not expected"));
      return;
    }
    inbox_ = std::move(inbox);
    Grant(kFrameWindow);
    StartRead(&frame_);
  }

  void OnReadDone(bool ok) override {
    if (!ok) {
      inbox_->SenderGone();
      End();
    } else if (!inbox_->Push(std::move(frame_))) {
      inbox_->SenderGone();
      End();
    } else {
      frame_.Clear();
      StartRead(&frame_);
    }
  }
  void OnWriteDone(bool) override {
    MutexLock lock(&mutex_);
    writing_ = false;
    WriteLocked();
  }
  void OnDone() override {
    if (inbox_ != nullptr) inbox_->Disconnect();
    delete this;
  }

  void Grant(uint32_t frames) override {
    MutexLock lock(&mutex_);
    granted_ += frames;
    WriteLocked();
  }
  void End() override {
    MutexLock lock(&mutex_);
    if (ended_) return;
    ended_ = true;
    Finish(grpc::Status(grpc::StatusCode::CANCELLED, "the receiver closed the link"));
  }

 private:
  void WriteLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (writing_ || ended_ || granted_ == 0) return;
    writing_ = true;
    credit_ = CreditMessage(granted_);
    granted_ = 0;
    StartWrite(&credit_);
  }

  std::shared_ptr<Inbox> inbox_;
  grpc::ByteBuffer frame_;
  Mutex mutex_;
  grpc::ByteBuffer credit_ ABSL_GUARDED_BY(mutex_);
  uint32_t granted_ ABSL_GUARDED_BY(mutex_) = 0;
  bool writing_ ABSL_GUARDED_BY(mutex_) = false;
  bool ended_ ABSL_GUARDED_BY(mutex_) = false;
};

using ChannelKey = std::string;

ChannelKey Key(const std::string& from, const std::string& to, const std::string& name,
               const std::string& epoch) {
  return absl::StrCat(epoch, "\n", from, "\n", to, "\n", name);
}

}  // namespace

struct TensorService::Impl : public grpc::CallbackGenericService {
  grpc::ServerGenericBidiReactor* CreateReactor(
      grpc::GenericCallbackServerContext* context) override {
    std::shared_ptr<Inbox> inbox;
    if (context->method() == kTensorMethod) {
      const auto value = [context](const char* name) {
        const auto& metadata = context->client_metadata();
        const auto it = metadata.find(name);
        return it == metadata.end() ? std::string()
                                    : std::string(it->second.data(), it->second.size());
      };
      MutexLock lock(&mutex);
      const auto it = inboxes.find(Key(value("packtrain-from"), value("packtrain-to"),
                                       value("packtrain-channel"), value("packtrain-epoch")));
      if (it != inboxes.end()) inbox = it->second;
    }
    return new SendCall(std::move(inbox));
  }

  Mutex mutex;
  std::map<ChannelKey, std::shared_ptr<Inbox>> inboxes ABSL_GUARDED_BY(mutex);
};

namespace {

class GrpcReceiveLink : public ReceiveLink {
 public:
  GrpcReceiveLink(std::shared_ptr<TensorService::Impl> service, ChannelKey key,
                  std::shared_ptr<Inbox> inbox, uint64_t epoch, size_t max_bytes)
      : service_(std::move(service)),
        key_(std::move(key)),
        inbox_(std::move(inbox)),
        epoch_(epoch),
        assembler_(max_bytes) {}

  ~GrpcReceiveLink() override {
    Close();
    MutexLock lock(&service_->mutex);
    service_->inboxes.erase(key_);
  }

  absl::Status Receive(Bundle* bundle, Clock::time_point deadline) override {
    while (true) {
      ASSIGN_OR_RETURN(grpc::ByteBuffer frame, inbox_->Pop(deadline));
      const absl::Status status = ReceiveBundle(std::move(frame), bundle, deadline);
      if (!status.ok()) {
        Close();
        return status;
      }
      bundles_.fetch_add(1, std::memory_order_relaxed);
      bytes_.fetch_add(assembler_.bundle_bytes(), std::memory_order_relaxed);
      if (bundle->epoch >= epoch_) return absl::OkStatus();
    }
  }
  void Close() override { inbox_->Close(); }
  LinkStats stats() const override { return {bundles_.load(), bytes_.load()}; }

 private:
  absl::Status ReceiveBundle(grpc::ByteBuffer frame, Bundle* bundle, Clock::time_point deadline) {
    while (true) {
      slices_.clear();
      pieces_.clear();
      if (!frame.Dump(&slices_).ok()) return absl::DataLossError("broken frame");
      for (const grpc::Slice& slice : slices_) {
        pieces_.emplace_back(reinterpret_cast<const char*>(slice.begin()), slice.size());
      }
      ASSIGN_OR_RETURN(const bool complete, assembler_.Add(pieces_, bundle));
      if (complete) return absl::OkStatus();
      ASSIGN_OR_RETURN(frame, inbox_->Pop(deadline));
    }
  }

  const std::shared_ptr<TensorService::Impl> service_;
  const ChannelKey key_;
  const std::shared_ptr<Inbox> inbox_;
  const uint64_t epoch_;
  FrameAssembler assembler_;
  std::vector<grpc::Slice> slices_;
  std::vector<std::string_view> pieces_;
  std::atomic<uint64_t> bundles_{0}, bytes_{0};
};

}  // namespace

TensorService::TensorService() : impl_(std::make_shared<Impl>()) {}
TensorService::~TensorService() = default;

void TensorService::Register(grpc::ServerBuilder* builder) {
  builder->RegisterCallbackGenericService(impl_.get());
}

absl::StatusOr<std::unique_ptr<ReceiveLink>> TensorService::Expect(const ChannelId& channel,
                                                                   uint64_t epoch,
                                                                   size_t max_bytes) {
  ChannelKey key = Key(channel.from, channel.to, channel.name, absl::StrCat(epoch));
  auto inbox = std::make_shared<Inbox>();
  MutexLock lock(&impl_->mutex);
  if (!impl_->inboxes.emplace(key, inbox).second) {
    return absl::AlreadyExistsError(absl::StrFormat("channel '%s' from '%s' to '%s' is open",
                                                    channel.name, channel.from, channel.to));
  }
  return std::make_unique<GrpcReceiveLink>(impl_, std::move(key), std::move(inbox), epoch,
                                           max_bytes);
}

}  // namespace packtrain

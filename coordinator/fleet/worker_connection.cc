#include "coordinator/fleet/worker_connection.h"

#include <grpcpp/grpcpp.h>

#include <optional>
#include <thread>
#include <utility>

#include "absl/strings/str_format.h"
#include "common/base/check.h"
#include "common/base/mutex.h"
#include "common/rpc/async_stream.h"
#include "common/rpc/channel.h"
#include "common/rpc/status.h"
#include "proto/control.grpc.pb.h"
#include "proto/health.grpc.pb.h"

namespace packtrain {

class WorkerConnection::Impl {
 public:
  Impl(const std::string& address, const Tls* tls, const std::shared_ptr<grpc::Channel>& channel,
       Events events)
      : events_(std::move(events)),
        control_(v1::Worker::NewStub(channel)),
        health_(grpc::health::v1::Health::NewStub(OpenChannel(address, tls))),
        stream_(control_->PrepareAsyncControl(&context_, &queue_)),
        writer_(stream_.get()) {
    stream_->StartCall(&started_);
    // Nothing may be written before the call has started; if it cannot, reading fails.
    void* tag = nullptr;
    bool ok = false;
    CHECK(queue_.Next(&tag, &ok) && tag == &started_);
    stream_->Read(&message_, &read_);
    thread_ = std::thread([this] { RunCompletions(&queue_); });
  }

  ~Impl() {
    {
      MutexLock lock(&mutex_);
      ending_ = true;
    }
    context_.TryCancel();
    thread_.join();
  }

  bool Send(const v1::CoordinatorMessage& message) { return writer_.Send(message); }

  void Begin(const v1::CoordinatorMessage& request, int answer) {
    {
      MutexLock lock(&mutex_);
      expected_ = answer;
      answer_.reset();
    }
    Send(request);
  }

  absl::StatusOr<v1::WorkerMessage> Finish(std::chrono::milliseconds timeout) {
    const auto deadline = std::chrono::steady_clock::now() + timeout;
    MutexLock lock(&mutex_);
    while (!answer_) {
      if (!lost_.ok()) return lost_;
      if (!changed_.WaitUntil(&mutex_, deadline) && !answer_ && lost_.ok()) {
        return absl::DeadlineExceededError("the worker did not answer in time");
      }
    }
    expected_ = 0;
    v1::WorkerMessage answer = *std::exchange(answer_, std::nullopt);
    if (answer.has_failed()) {
      return StatusFromWire(answer.failed().code(), answer.failed().message());
    }
    return answer;
  }

  void Abort() { context_.TryCancel(); }

  absl::Status CheckHealth(std::chrono::milliseconds timeout) {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + timeout);
    grpc::health::v1::HealthCheckResponse response;
    const grpc::Status status = health_->Check(&context, {}, &response);
    if (!status.ok()) return FromGrpc(status);
    if (response.status() == grpc::health::v1::HealthCheckResponse::SERVING) {
      return absl::OkStatus();
    }
    return absl::UnavailableError("the worker says that it is not serving");
  }

 private:
  void OnRead(bool ok) {
    if (!ok) {
      writer_.Close([this] { stream_->Finish(&status_, &finished_); });
      return;
    }
    if (!TakeAnswer(message_)) events_.message(message_);
    stream_->Read(&message_, &read_);
  }

  void OnFinished() {
    absl::Status status = FromGrpc(status_);
    if (status.ok()) status = absl::UnavailableError("the worker ended the control stream");
    bool report = false;
    {
      MutexLock lock(&mutex_);
      lost_ = status;
      report = !ending_;
      changed_.NotifyAll();
    }
    if (report) events_.lost(status);
    queue_.Shutdown();
  }

  bool TakeAnswer(const v1::WorkerMessage& message) {
    MutexLock lock(&mutex_);
    if (expected_ == 0) return false;
    if (!message.has_failed() && message.message_case() != expected_) return false;
    answer_ = message;
    changed_.NotifyAll();
    return true;
  }

  const Events events_;
  const std::unique_ptr<v1::Worker::Stub> control_;
  const std::unique_ptr<grpc::health::v1::Health::Stub> health_;
  grpc::ClientContext context_;
  grpc::CompletionQueue queue_;
  const std::unique_ptr<grpc::ClientAsyncReaderWriter<v1::CoordinatorMessage, v1::WorkerMessage>>
      stream_;
  StreamWriter<grpc::ClientAsyncReaderWriter<v1::CoordinatorMessage, v1::WorkerMessage>,
               v1::CoordinatorMessage>
      writer_;
  v1::WorkerMessage message_;
  grpc::Status status_;
  Completion started_ = [](bool) {};
  Completion read_ = [this](bool ok) { OnRead(ok); };
  Completion finished_ = [this](bool) { OnFinished(); };
  Mutex mutex_;
  CondVar changed_;
  int expected_ ABSL_GUARDED_BY(mutex_) = 0;
  std::optional<v1::WorkerMessage> answer_ ABSL_GUARDED_BY(mutex_);
  absl::Status lost_ ABSL_GUARDED_BY(mutex_);
  bool ending_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

absl::StatusOr<std::unique_ptr<WorkerConnection>> WorkerConnection::Connect(
    const std::string& address, const Tls* tls, Events events,
    std::chrono::steady_clock::time_point deadline, const std::function<bool()>& keep_waiting) {
  constexpr std::chrono::milliseconds kSlice(100);
  const std::shared_ptr<grpc::Channel> channel = OpenChannel(address, tls);
  while (!channel->WaitForConnected(std::chrono::system_clock::now() + kSlice)) {
    if (std::chrono::steady_clock::now() >= deadline || !keep_waiting()) {
      return absl::UnavailableError(absl::StrFormat("no worker answers at %s", address));
    }
  }
  return std::unique_ptr<WorkerConnection>(
      new WorkerConnection(std::make_unique<Impl>(address, tls, channel, std::move(events))));
}

WorkerConnection::WorkerConnection(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
WorkerConnection::~WorkerConnection() = default;
bool WorkerConnection::Send(const v1::CoordinatorMessage& message) { return impl_->Send(message); }
void WorkerConnection::Begin(const v1::CoordinatorMessage& request, int answer) {
  impl_->Begin(request, answer);
}
absl::StatusOr<v1::WorkerMessage> WorkerConnection::Finish(std::chrono::milliseconds timeout) {
  return impl_->Finish(timeout);
}
absl::StatusOr<v1::WorkerMessage> WorkerConnection::Call(const v1::CoordinatorMessage& request,
                                                         int answer,
                                                         std::chrono::milliseconds timeout) {
  Begin(request, answer);
  return Finish(timeout);
}
void WorkerConnection::Abort() { impl_->Abort(); }
absl::Status WorkerConnection::CheckHealth(std::chrono::milliseconds timeout) {
  return impl_->CheckHealth(timeout);
}

}  // namespace packtrain

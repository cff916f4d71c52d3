#include "worker/server/control_server.h"

#include <grpcpp/grpcpp.h>
#include <spdlog/spdlog.h>

#include <string>
#include <thread>
#include <utility>

#include "absl/strings/str_format.h"
#include "common/rpc/async_stream.h"
#include "common/rpc/status.h"
#include "proto/control.grpc.pb.h"
#include "proto/health.grpc.pb.h"

namespace packtrain {

class ControlServer::Impl {
 public:
  Impl(ModelLoader loader, TensorService* tensors, std::function<void()> shutdown)
      : loader_(std::move(loader)), tensors_(tensors), shutdown_(std::move(shutdown)) {}
  ~Impl() {
    if (thread_.joinable()) thread_.join();
  }

  void Register(grpc::ServerBuilder* builder) {
    builder->RegisterService(&control_);
    builder->RegisterService(&health_);
    queue_ = builder->AddCompletionQueue();
  }

  void Start(WorkerOptions options);

 private:
  class ControlCall;
  class HealthCall;

  // OK: the call goes on when its Begin is called. Else why it may not.
  absl::Status TakeTurn(ControlCall* call, uint64_t epoch);
  void Ended(ControlCall* call);

  // Of both kinds that wait or go on. None is left once the server has been shut down and they have
  // ended; then the thread ends too.
  void CountCalls(int change) {
    num_calls_ += change;
    if (num_calls_ == 0) queue_->Shutdown();
  }

  const ModelLoader loader_;
  TensorService* const tensors_;
  const std::function<void()> shutdown_;
  v1::Worker::AsyncService control_;
  grpc::health::v1::Health::AsyncService health_;
  std::unique_ptr<grpc::ServerCompletionQueue> queue_;
  WorkerOptions options_;
  int num_calls_ = 0;
  uint64_t epoch_ = 0;              // the highest that joined
  ControlCall* current_ = nullptr;  // has the worker
  ControlCall* next_ = nullptr;     // waits until the current one, which is being ended, has ended
  std::thread thread_;
};

// A coordinator's stream: waits for one, reads Join, waits for its turn, hands messages to a
// Worker. Deletes itself.
class ControlServer::Impl::ControlCall {
 public:
  explicit ControlCall(Impl* server) : server_(server) {
    server_->CountCalls(1);
    server_->control_.RequestControl(&context_, &stream_, server_->queue_.get(),
                                     server_->queue_.get(), &accepted_);
  }
  ~ControlCall() { server_->CountCalls(-1); }

  void Begin() {
    worker_ = std::make_unique<Worker>(
        server_->options_, server_->loader_, server_->tensors_,
        [this](const v1::WorkerMessage& message) { writer_.Send(message); });
    Handle();
  }
  void Cancel() { context_.TryCancel(); }
  // The worker ends here, which waits for a step that is being computed.
  void End(const absl::Status& status) {
    worker_ = nullptr;
    writer_.Close([this, status] { stream_.Finish(ToGrpc(status), &finished_); });
  }

 private:
  void OnAccepted(bool ok) {
    if (!ok) {  // the server ends
      delete this;
      return;
    }
    new ControlCall(server_);
    stream_.Read(&message_, &read_);
  }

  void OnRead(bool ok) {
    if (worker_ != nullptr) {
      if (ok) return Handle();
      return End(absl::OkStatus());
    }
    if (!ok || !message_.has_join()) {
      return End(absl::InvalidArgumentError("the first message must be Join"));
    }
    const absl::Status turn = server_->TakeTurn(this, message_.join().epoch());
    if (!turn.ok()) End(turn);
  }

  void Handle() {
    const absl::Status status = worker_->Handle(message_);
    if (status.ok()) return stream_.Read(&message_, &read_);
    if (absl::IsCancelled(status)) {
      server_->shutdown_();
      return End(absl::OkStatus());
    }
    spdlog::error("control: {}", std::string(status.message()));
    End(status);
  }

  Impl* const server_;
  grpc::ServerContext context_;
  grpc::ServerAsyncReaderWriter<v1::WorkerMessage, v1::CoordinatorMessage> stream_{&context_};
  v1::CoordinatorMessage message_;
  StreamWriter<decltype(stream_), v1::WorkerMessage> writer_{&stream_};
  std::unique_ptr<Worker> worker_;
  Completion accepted_ = [this](bool ok) { OnAccepted(ok); };
  Completion read_ = [this](bool ok) { OnRead(ok); };
  Completion finished_ = [this](bool) {
    server_->Ended(this);
    delete this;
  };
};

// gRPC's own health service would bring threads of gRPC's that wake up for every message. Deletes
// itself.
class ControlServer::Impl::HealthCall {
 public:
  explicit HealthCall(Impl* server) : server_(server) {
    server_->CountCalls(1);
    server_->health_.RequestCheck(&context_, &request_, &responder_, server_->queue_.get(),
                                  server_->queue_.get(), &accepted_);
  }
  ~HealthCall() { server_->CountCalls(-1); }

 private:
  void OnAccepted(bool ok) {
    if (!ok) {  // the server ends
      delete this;
      return;
    }
    new HealthCall(server_);
    if (!request_.service().empty()) {
      responder_.FinishWithError({grpc::StatusCode::NOT_FOUND, "unknown service"}, &finished_);
      return;
    }
    grpc::health::v1::HealthCheckResponse response;
    response.set_status(grpc::health::v1::HealthCheckResponse::SERVING);
    responder_.Finish(response, grpc::Status::OK, &finished_);
  }

  Impl* const server_;
  grpc::ServerContext context_;
  grpc::health::v1::HealthCheckRequest request_;
  grpc::ServerAsyncResponseWriter<grpc::health::v1::HealthCheckResponse> responder_{&context_};
  Completion accepted_ = [this](bool ok) { OnAccepted(ok); };
  Completion finished_ = [this](bool) { delete this; };
};

void ControlServer::Impl::Start(WorkerOptions options) {
  options_ = std::move(options);
  new ControlCall(this);
  new HealthCall(this);
  thread_ = std::thread([this] { RunCompletions(queue_.get()); });
}

absl::Status ControlServer::Impl::TakeTurn(ControlCall* call, uint64_t epoch) {
  if (epoch <= epoch_) {
    return absl::FailedPreconditionError(
        absl::StrFormat("epoch %d is not above %d, which this worker serves", epoch, epoch_));
  }
  epoch_ = epoch;
  if (current_ == nullptr) {
    current_ = call;
    call->Begin();
    return absl::OkStatus();
  }
  current_->Cancel();
  if (next_ != nullptr) next_->End(absl::AbortedError("a newer coordinator joined"));
  next_ = call;
  return absl::OkStatus();
}

void ControlServer::Impl::Ended(ControlCall* call) {
  if (call != current_) return;
  current_ = std::exchange(next_, nullptr);
  if (current_ != nullptr) current_->Begin();
}

ControlServer::ControlServer(ModelLoader loader, TensorService* tensors,
                             std::function<void()> shutdown)
    : impl_(std::make_unique<Impl>(std::move(loader), tensors, std::move(shutdown))) {}
ControlServer::~ControlServer() = default;
void ControlServer::Register(grpc::ServerBuilder* builder) { impl_->Register(builder); }
void ControlServer::Start(WorkerOptions options) { impl_->Start(std::move(options)); }

}  // namespace packtrain

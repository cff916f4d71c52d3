#include "worker/server/server.h"

#include <grpcpp/grpcpp.h>
#include <signal.h>
#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/base/mutex.h"
#include "common/rpc/channel.h"
#include "common/rpc/status.h"
#include "proto/control.grpc.pb.h"
#include "proto/health.grpc.pb.h"
#include "worker/server/device_name.h"
#include "worker/server/worker.h"
#include "worker/transport/grpc/tensor_service.h"

namespace packtrain {
namespace {

constexpr int kUsageError = 2;

// One coordinator at a time: a newer epoch ends the stream of an older one.
class ControlService : public v1::Worker::Service {
 public:
  using Stream = grpc::ServerReaderWriter<v1::WorkerMessage, v1::CoordinatorMessage>;

  ControlService(ModelLoader loader, TensorService* tensors, std::function<void()> shutdown)
      : loader_(std::move(loader)), tensors_(tensors), shutdown_(std::move(shutdown)) {}

  // Known only once the server listens; coordinators wait for it.
  void set_options(WorkerOptions options) {
    MutexLock lock(&mutex_);
    options_ = std::move(options);
    ready_ = true;
    changed_.NotifyAll();
  }

  grpc::Status Control(grpc::ServerContext* context, Stream* stream) override {
    v1::CoordinatorMessage message;
    if (!stream->Read(&message) || !message.has_join()) {
      return ToGrpc(absl::InvalidArgumentError("the first message must be Join"));
    }
    const absl::Status turn = TakeTurn(context, message.join().epoch());
    if (!turn.ok()) return ToGrpc(turn);
    const absl::Status status = Serve(stream, &message);
    {
      MutexLock lock(&mutex_);
      current_ = nullptr;
      changed_.NotifyAll();
    }
    return ToGrpc(status);
  }

 private:
  absl::Status TakeTurn(grpc::ServerContext* context, uint64_t epoch) {
    MutexLock lock(&mutex_);
    while (!ready_) changed_.Wait(&mutex_);
    if (epoch <= epoch_) {
      return absl::FailedPreconditionError(
          absl::StrFormat("epoch %d is not above %d, which this worker serves", epoch, epoch_));
    }
    epoch_ = epoch;
    while (current_ != nullptr) {
      current_->TryCancel();
      changed_.Wait(&mutex_);
      if (epoch_ != epoch) return absl::AbortedError("a newer coordinator joined");
    }
    current_ = context;
    return absl::OkStatus();
  }

  absl::Status Serve(Stream* stream, v1::CoordinatorMessage* message) {
    Mutex write_mutex;
    Worker worker(options_, loader_, tensors_, [&](const v1::WorkerMessage& m, SendWhen when) {
      grpc::WriteOptions options;
      if (when == SendWhen::kWithNext) options.set_buffer_hint();
      MutexLock lock(&write_mutex);
      stream->Write(m, options);
    });
    do {
      const absl::Status status = worker.Handle(*message);
      if (absl::IsCancelled(status)) {
        shutdown_();
        return absl::OkStatus();
      }
      if (!status.ok()) {
        spdlog::error("control: {}", std::string(status.message()));
        return status;
      }
    } while (stream->Read(message));
    return absl::OkStatus();
  }

  const ModelLoader loader_;
  TensorService* const tensors_;
  const std::function<void()> shutdown_;
  Mutex mutex_;
  CondVar changed_;
  WorkerOptions options_;  // constant once ready
  bool ready_ ABSL_GUARDED_BY(mutex_) = false;
  uint64_t epoch_ ABSL_GUARDED_BY(mutex_) = 0;
  grpc::ServerContext* current_ ABSL_GUARDED_BY(mutex_) = nullptr;
};

// gRPC's own health service would bring threads of gRPC's that wake up for every message.
class HealthService : public grpc::health::v1::Health::Service {
 public:
  grpc::Status Check(grpc::ServerContext*, const grpc::health::v1::HealthCheckRequest* request,
                     grpc::health::v1::HealthCheckResponse* response) override {
    if (!request->service().empty()) return {grpc::StatusCode::NOT_FOUND, "unknown service"};
    response->set_status(grpc::health::v1::HealthCheckResponse::SERVING);
    return grpc::Status::OK;
  }
};

struct Flags {
  std::string listen;
  std::string data_listen;
  std::string device = "cpu";
  bool insecure = false;
};

// Replaces port 0 by the port that was bound.
std::string BoundAddress(const std::string& address, int port) {
  if (address.starts_with("unix:")) return address;
  return absl::StrCat(address.substr(0, address.rfind(':')), ":", port);
}

// Null if the address cannot be listened on; else the address that was bound.
std::unique_ptr<grpc::Server> Listen(const std::string& address,
                                     const std::vector<grpc::Service*>& services,
                                     TensorService* tensors, std::string* bound) {
  grpc::ServerBuilder builder;
  ConfigureServer(&builder);
  int port = 0;
  builder.AddListeningPort(address, grpc::InsecureServerCredentials(), &port);
  for (grpc::Service* service : services) builder.RegisterService(service);
  if (tensors != nullptr) tensors->Register(&builder);
  std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  *bound = BoundAddress(address, port);
  if (server != nullptr && (port != 0 || address.starts_with("unix:"))) return server;
  spdlog::error("cannot listen on '{}'", address);
  return nullptr;
}

int Serve(const Flags& flags, ModelLoader loader, DeviceLinks links) {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);

  TensorService tensors;
  HealthService health;
  // The main thread sleeps on signals; a Shutdown message becomes one.
  ControlService control(std::move(loader), &tensors, [] { kill(getpid(), SIGTERM); });
  // A server of its own for tensors where there is an address for it: gRPC's threads that serve
  // these would wake up for every message of the control stream too.
  const bool apart = !flags.data_listen.empty();
  std::string address, data_address;
  const auto server =
      Listen(flags.listen, {&control, &health}, apart ? nullptr : &tensors, &address);
  if (server == nullptr) return 1;
  std::unique_ptr<grpc::Server> data_server;
  if (apart) {
    data_server = Listen(flags.data_listen, {}, &tensors, &data_address);
    if (data_server == nullptr) return 1;
  }
  control.set_options({flags.device, apart ? data_address : address, std::move(links)});
  spdlog::debug("listening on {}", address);
  int signal = 0;
  sigwait(&signals, &signal);
  // Streams end, threads that wait for peers are left behind: the process ends here.
  server->Shutdown(std::chrono::system_clock::now() + std::chrono::milliseconds(500));
  spdlog::default_logger()->flush();
  _exit(0);
}

}  // namespace

int RunWorker(int argc, char** argv, ModelLoader loader,
              const std::function<DeviceLinks(const std::string& device)>& links) {
  spdlog::set_default_logger(spdlog::stderr_logger_mt("worker"));
  spdlog::set_pattern("[%Y-%m-%d %H:%M:%S.%e] [%l] %v");
  Flags flags;
  CLI::App app("packtrain-worker: carries a part of a model on one device");
  app.add_option("--listen", flags.listen, "unix:PATH or HOST:PORT")->required();
  app.add_option("--data-listen", flags.data_listen,
                 "where other workers connect, if not at --listen");
  app.add_option("--device", flags.device, "cpu or cuda:N")->capture_default_str();
  app.add_flag("--insecure", flags.insecure, "allow unencrypted connections beyond loopback");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) return app.exit(error);  // --help
    spdlog::error("{}", error.what());
    return kUsageError;
  }
  if (flags.device != "cpu") {
    const absl::StatusOr<int> ordinal = CudaOrdinal(flags.device);
    if (!ordinal.ok()) {
      spdlog::error("{}", std::string(ordinal.status().message()));
      return kUsageError;
    }
  }
  for (const std::string& address : {flags.listen, flags.data_listen}) {
    if (address.empty()) continue;
    const absl::Status allowed = CheckAddressAllowed(address, flags.insecure);
    if (!allowed.ok()) {
      spdlog::error("{}", std::string(allowed.message()));
      return kUsageError;
    }
  }
  return Serve(flags, std::move(loader), links(flags.device));
}

}  // namespace packtrain

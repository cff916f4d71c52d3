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
#include "common/rpc/channel.h"
#include "worker/server/control_server.h"
#include "worker/server/device_name.h"
#include "worker/transport/grpc/tensor_service.h"

namespace packtrain {
namespace {

constexpr int kUsageError = 2;

struct Flags {
  std::string listen;
  std::string data_listen;
  std::string device = "cpu";
  bool insecure = false;
  TlsFiles tls;
};

// Replaces port 0 by the port that was bound.
std::string BoundAddress(const std::string& address, int port) {
  if (address.starts_with("unix:")) return address;
  return absl::StrCat(address.substr(0, address.rfind(':')), ":", port);
}

// Null if the address cannot be listened on; else the address that was bound.
std::unique_ptr<grpc::Server> Listen(const std::string& address, const Tls* tls,
                                     ControlServer* control, TensorService* tensors,
                                     std::string* bound) {
  grpc::ServerBuilder builder;
  ConfigureServer(&builder);
  int port = 0;
  builder.AddListeningPort(address, ServerCredentialsFor(address, tls), &port);
  if (control != nullptr) control->Register(&builder);
  if (tensors != nullptr) tensors->Register(&builder);
  std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  *bound = BoundAddress(address, port);
  if (server != nullptr && (port != 0 || address.starts_with("unix:"))) return server;
  spdlog::error("cannot listen on '{}'", address);
  return nullptr;
}

int Serve(const Flags& flags, std::shared_ptr<const Tls> tls, ModelLoader loader,
          DeviceLinks links) {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);

  TensorService tensors;
  // The main thread sleeps on signals; a Shutdown message becomes one.
  ControlServer control(std::move(loader), &tensors, [] { kill(getpid(), SIGTERM); });
  // A server of its own for tensors where there is an address for it: gRPC's threads that serve
  // these would wake up for every message of the control stream too.
  const bool apart = !flags.data_listen.empty();
  std::string address, data_address;
  const auto server =
      Listen(flags.listen, tls.get(), &control, apart ? nullptr : &tensors, &address);
  if (server == nullptr) return 1;
  std::unique_ptr<grpc::Server> data_server;
  if (apart) {
    data_server = Listen(flags.data_listen, tls.get(), nullptr, &tensors, &data_address);
    if (data_server == nullptr) return 1;
  }
  control.Start({flags.device, apart ? data_address : address, std::move(links), tls});
  spdlog::debug("listening on {}", address);
  int signal = 0;
  sigwait(&signals, &signal);
  // Streams end, threads that wait for peers are left behind: the process ends here. Idle channels
  // of the coordinator's are not waited for, and would not close by themselves.
  server->Shutdown(std::chrono::system_clock::now() + std::chrono::milliseconds(50));
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
  CLI::Option* insecure =
      app.add_flag("--insecure", flags.insecure, "allow plain connections beyond loopback");
  CLI::Option* ca = app.add_option("--tls-ca", flags.tls.ca,
                                   "who signs the certificates of all processes, as all these a "
                                   "PEM file")
                        ->excludes(insecure);
  CLI::Option* certificate =
      app.add_option("--tls-certificate", flags.tls.certificate, "of this process");
  CLI::Option* key = app.add_option("--tls-key", flags.tls.key, "of that certificate");
  ca->needs(certificate, key);
  certificate->needs(ca);
  key->needs(ca);
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
    const absl::Status allowed = CheckAddressAllowed(address, flags.tls.given(), flags.insecure);
    if (!allowed.ok()) {
      spdlog::error("{}", std::string(allowed.message()));
      return kUsageError;
    }
  }
  absl::StatusOr<std::shared_ptr<const Tls>> tls = ReadTls(flags.tls);
  if (!tls.ok()) {
    spdlog::error("{}", std::string(tls.status().message()));
    return kUsageError;
  }
  return Serve(flags, *std::move(tls), std::move(loader), links(flags.device));
}

}  // namespace packtrain

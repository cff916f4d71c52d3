#include "coordinator/fleet/fleet_worker.h"

#include <unistd.h>

#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "common/rpc/protocol_version.h"

namespace packtrain {

FleetWorker::FleetWorker(WorkerPlan plan, Options options)
    : plan_(std::move(plan)), options_(std::move(options)) {}

FleetWorker::~FleetWorker() {
  Stop();
  if (segment_fd_ >= 0) close(segment_fd_);
}

absl::Status FleetWorker::Start(uint64_t epoch, WorkerConnection::Events events,
                                std::chrono::milliseconds timeout,
                                const std::function<bool()>& keep_waiting) {
  Stop();
  std::string address = plan_.address;
  if (local()) {
    // A new name each time: the socket of a killed worker stays behind.
    address = absl::StrCat("unix:", options_.socket_directory, "/", plan_.name, ".", ++starts_);
    const bool elsewhere = !options_.data_host.empty();  // somebody there needs to reach it
    std::vector<std::string> arguments = {
        "--listen",      address,
        "--data-listen", elsewhere ? absl::StrCat(options_.data_host, ":0") : address + ".data",
        "--device",      plan_.device};
    if (elsewhere && options_.insecure) arguments.emplace_back("--insecure");
    if (elsewhere && options_.tls != nullptr) {
      const TlsFiles& files = options_.tls_files;
      arguments.insert(arguments.end(), {"--tls-ca", files.ca, "--tls-certificate",
                                         files.certificate, "--tls-key", files.key});
    }
    std::vector<int> inherited;
    if (segment_fd_ >= 0) inherited.push_back(segment_fd_);
    for (const FleetWorker* experts : streams_from_) inherited.push_back(experts->segment_fd());
    ASSIGN_OR_RETURN(process_, WorkerProcess::Start(options_.binary, arguments, inherited));
  }
  lost = false;
  const absl::Status status = Join(epoch, address, std::move(events), timeout, keep_waiting);
  if (!absl::IsUnavailable(status) || local()) return status;
  const std::string why = DiagnoseConnection(address, options_.tls.get());
  if (why.empty()) return status;
  return absl::UnavailableError(absl::StrCat("no connection to ", address, ": ", why));
}

absl::Status FleetWorker::Join(uint64_t epoch, const std::string& address,
                               WorkerConnection::Events events, std::chrono::milliseconds timeout,
                               const std::function<bool()>& keep_waiting) {
  ASSIGN_OR_RETURN(connection_,
                   WorkerConnection::Connect(address, options_.tls.get(), std::move(events),
                                             std::chrono::steady_clock::now() + timeout, [&] {
                                               return keep_waiting() &&
                                                      (!local() || process_->Ended().empty());
                                             }));
  v1::CoordinatorMessage message;
  v1::Join* join = message.mutable_join();
  join->set_worker_id(absl::StrCat(options_.deployment, "/", plan_.name));
  join->set_epoch(epoch);
  join->set_protocol_version(kProtocolVersion);
  ASSIGN_OR_RETURN(const v1::WorkerMessage answer,
                   connection_->Call(message, v1::WorkerMessage::kJoined, timeout));
  peer_ = answer.joined().peer();
  cores_ = static_cast<int>(answer.joined().device().cores());
  return absl::OkStatus();
}

void FleetWorker::Stop() {
  connection_ = nullptr;
  process_ = nullptr;
}

void FleetWorker::Shutdown() {
  if (process_ == nullptr) return;
  v1::CoordinatorMessage message;
  message.mutable_shutdown();
  if (lost || connection_ == nullptr || !connection_->Send(message)) process_->Terminate();
}

void FleetWorker::Terminate() {
  if (process_ != nullptr) process_->Terminate();
}

std::string FleetWorker::Diagnose(const std::string& why) {
  if (process_ == nullptr) return why;
  // A killed process closes its sockets a little before it can be waited for.
  for (int i = 0; i < 20 && process_->Ended().empty(); ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  const std::string ended = process_->Ended();
  return ended.empty() ? why : ended;
}

}  // namespace packtrain

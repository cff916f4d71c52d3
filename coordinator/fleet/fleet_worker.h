#pragma once

// One worker of a deployment as the fleet sees it: its process, its connection, what it told.

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "coordinator/fleet/worker_connection.h"
#include "coordinator/fleet/worker_process.h"
#include "coordinator/placement/plan.h"
#include "proto/control.pb.h"

namespace packtrain {

class FleetWorker {
 public:
  struct Options {
    std::string deployment;
    std::string binary;
    std::string socket_directory;
    // Where other hosts reach workers of this one; empty: no other hosts.
    std::string data_host = {};
    bool insecure = false;
    TlsFiles tls_files = {};                   // for workers started here
    std::shared_ptr<const Tls> tls = nullptr;  // the same, read
  };

  FleetWorker(WorkerPlan plan, Options options);
  // Closes the segment; ends the process if it runs here.
  ~FleetWorker();

  // Starts the process unless it runs elsewhere, connects and joins under `epoch`. A former process
  // and connection are ended. Called from the thread that lives as long as the fleet.
  absl::Status Start(uint64_t epoch, WorkerConnection::Events events,
                     std::chrono::milliseconds timeout, const std::function<bool()>& keep_waiting);
  // Ends the connection and the process started here, at once.
  void Stop();
  // Tells a process started here to end: over the stream, and if that is gone by a signal.
  void Shutdown();
  // Tells it once more, by the signal that cannot be overheard by a stream that hangs.
  void Terminate();
  // Whether no process of ours runs.
  bool ended() { return process_ == nullptr || !process_->Ended().empty(); }

  // Adds what is known about the end of the process to `why`.
  std::string Diagnose(const std::string& why);

  const WorkerPlan& plan() const { return plan_; }
  const std::string& name() const { return plan_.name; }
  bool local() const { return plan_.address.empty(); }
  bool stage() const { return plan_.role == WorkerRole::kStage; }
  const v1::PeerInfo& peer() const { return peer_; }
  int cores() const { return cores_; }  // that the worker may use
  void set_epoch(uint64_t epoch) { peer_.set_epoch(epoch); }
  // Null until started.
  WorkerConnection* connection() { return connection_.get(); }
  int segment_fd() const { return segment_fd_; }
  void set_segment_fd(int fd) { segment_fd_ = fd; }
  // Experts workers from whose segments this one streams: it inherits them too. Before Start; the
  // others live as long as this one's process.
  void StreamFrom(const FleetWorker* experts) { streams_from_.push_back(experts); }
  const std::vector<const FleetWorker*>& streams_from() const { return streams_from_; }

  // The stream has ended by itself; the connection is of no more use.
  std::atomic<bool> lost{false};

 private:
  absl::Status Join(uint64_t epoch, const std::string& address, WorkerConnection::Events events,
                    std::chrono::milliseconds timeout, const std::function<bool()>& keep_waiting);

  const WorkerPlan plan_;
  const Options options_;
  int starts_ = 0;
  int segment_fd_ = -1;
  std::vector<const FleetWorker*> streams_from_;
  v1::PeerInfo peer_;
  int cores_ = 0;
  std::unique_ptr<WorkerProcess> process_;
  std::unique_ptr<WorkerConnection> connection_;
};

}  // namespace packtrain

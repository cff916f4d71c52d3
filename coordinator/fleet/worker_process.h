#pragma once

// A worker started on this host. It dies with the coordinator: the kernel kills it when the thread
// that started it ends, so that must be a thread that lives as long as the fleet.

#include <sys/types.h>

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace packtrain {

class WorkerProcess {
 public:
  // Runs `binary` with `arguments`; `inherited` descriptors keep their numbers there.
  // Errors: NOT_FOUND if there is no such program, RESOURCE_EXHAUSTED.
  static absl::StatusOr<std::unique_ptr<WorkerProcess>> Start(
      const std::string& binary, const std::vector<std::string>& arguments,
      const std::vector<int>& inherited);
  // Kills it if it still runs.
  ~WorkerProcess();

  pid_t pid() const { return pid_; }
  // Empty while it runs; then how it ended: "exited with status 1", "killed by signal 9".
  std::string Ended();
  void Terminate();  // asks it to end

 private:
  explicit WorkerProcess(pid_t pid) : pid_(pid) {}
  const pid_t pid_;
  std::string ended_;
};

// The program `name` beside our own.
std::string SiblingBinary(const std::string& name);

}  // namespace packtrain

#include "coordinator/fleet/worker_process.h"

#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "absl/strings/str_format.h"

namespace packtrain {

absl::StatusOr<std::unique_ptr<WorkerProcess>> WorkerProcess::Start(
    const std::string& binary, const std::vector<std::string>& arguments,
    const std::vector<int>& inherited) {
  if (access(binary.c_str(), X_OK) != 0) {
    return absl::NotFoundError(absl::StrFormat("%s: %s", binary, std::strerror(errno)));
  }
  std::vector<char*> argv = {const_cast<char*>(binary.c_str())};
  for (const std::string& a : arguments) argv.push_back(const_cast<char*>(a.c_str()));
  argv.push_back(nullptr);
  const pid_t parent = getpid();
  const pid_t pid = fork();
  if (pid < 0) {
    return absl::ResourceExhaustedError(absl::StrFormat("fork: %s", std::strerror(errno)));
  }
  if (pid == 0) {
    // Between fork and exec only what may be called in a signal handler.
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) _exit(127);
    // A terminal's Ctrl-C goes to the coordinator alone, which then ends its workers in order.
    setpgid(0, 0);
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, nullptr);
    dup2(STDERR_FILENO, STDOUT_FILENO);  // a worker only logs
    for (const int fd : inherited) fcntl(fd, F_SETFD, 0);
    execv(binary.c_str(), argv.data());
    _exit(127);
  }
  return std::unique_ptr<WorkerProcess>(new WorkerProcess(pid));
}

WorkerProcess::~WorkerProcess() {
  if (!ended_.empty()) return;
  kill(pid_, SIGKILL);
  while (waitpid(pid_, nullptr, 0) < 0 && errno == EINTR) {
  }
}

std::string WorkerProcess::Ended() {
  int status = 0;
  if (!ended_.empty() || waitpid(pid_, &status, WNOHANG) != pid_) return ended_;
  ended_ = WIFSIGNALED(status) ? absl::StrFormat("killed by signal %d", WTERMSIG(status))
                               : absl::StrFormat("exited with status %d", WEXITSTATUS(status));
  return ended_;
}

void WorkerProcess::Terminate() {
  if (Ended().empty()) kill(pid_, SIGTERM);
}

std::string SiblingBinary(const std::string& name) {
  char path[PATH_MAX] = {};
  const ssize_t length = readlink("/proc/self/exe", path, sizeof path - 1);
  const std::string own(path, length > 0 ? static_cast<size_t>(length) : 0);
  return own.substr(0, own.rfind('/') + 1) + name;
}

}  // namespace packtrain

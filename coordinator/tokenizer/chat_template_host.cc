#include "coordinator/tokenizer/chat_template_host.h"

#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "common/base/mutex.h"
#include "common/base/status_macros.h"
#include "coordinator/tokenizer/chat_template_host_script.h"

namespace packtrain {
namespace {

using Clock = std::chrono::steady_clock;

constexpr size_t kInputBytesMax = size_t{256} << 20;

std::vector<std::string> PythonCandidates(const std::string& configured) {
  if (!configured.empty()) return {configured};
  if (const char* named = std::getenv("PACKTRAIN_PYTHON"); named != nullptr && *named != '\0') {
    return {named};
  }
  std::vector<std::string> candidates = {"/usr/bin/python3"};
  const char* path = std::getenv("PATH");
  for (const std::string& folder :
       std::vector<std::string>(absl::StrSplit(path == nullptr ? "" : path, ':'))) {
    std::string candidate = absl::StrCat(folder, "/python3");
    if (!folder.empty() && candidate != candidates[0] && access(candidate.c_str(), X_OK) == 0) {
      candidates.push_back(std::move(candidate));
    }
  }
  return candidates;
}

void SetLimit(__rlimit_resource resource, rlim_t value) {
  const rlimit limit{value, value};
  setrlimit(resource, &limit);
}

// Between fork and exec: system calls only, because another thread may have held any lock.
[[noreturn]] void BecomeChild(int socket, size_t memory_bytes_max, const char* const* argv) {
  dup2(socket, 0);
  dup2(socket, 1);
  const int null = open("/dev/null", O_WRONLY);
  dup2(null, 2);
  close_range(3, ~0U, 0);
  if (chdir("/") != 0) _exit(127);
  // A network namespace of its own holds no way out. Not every kernel lets us; the sandbox and the
  // absence of sockets in it remain.
  (void)unshare(CLONE_NEWUSER | CLONE_NEWNET);
  SetLimit(RLIMIT_AS, memory_bytes_max);
  SetLimit(RLIMIT_FSIZE, 0);
  SetLimit(RLIMIT_CORE, 0);
  signal(SIGPIPE, SIG_DFL);
  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, nullptr);
  const char* const environment[] = {"LC_ALL=C.UTF-8", "PATH=/usr/bin:/bin", nullptr};
  execve(argv[0], const_cast<char* const*>(argv), const_cast<char* const*>(environment));
  _exit(127);
}

// One running interpreter and its socket. Killed when destroyed.
class Child {
 public:
  Child() = default;
  ~Child() { Kill(); }
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;

  absl::Status Start(const std::string& python, const ChatTemplateHostOptions& options);
  void Kill();
  absl::Status Send(std::string_view data, Clock::time_point deadline);
  absl::Status Receive(char* data, size_t size, Clock::time_point deadline);
  int pid() const { return pid_; }

 private:
  absl::Status Await(short events, Clock::time_point deadline);

  int pid_ = 0;
  int socket_ = -1;
};

absl::Status Child::Start(const std::string& python, const ChatTemplateHostOptions& options) {
  int sockets[2];
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sockets) != 0) {
    return absl::UnavailableError(absl::StrCat("socketpair: ", std::strerror(errno)));
  }
  const std::string deadline_s =
      absl::StrCat(std::chrono::duration<double>(options.render_deadline).count());
  const std::string output_max = absl::StrCat(options.output_chars_max);
  const char* const argv[] = {
      python.c_str(),     "-I",   "-c", kChatTemplateHostScript, deadline_s.c_str(),
      output_max.c_str(), nullptr};
  const pid_t pid = fork();
  if (pid == 0) BecomeChild(sockets[1], options.memory_bytes_max, argv);
  const int fork_errno = errno;
  close(sockets[1]);
  if (pid < 0) {
    close(sockets[0]);
    return absl::UnavailableError(absl::StrCat("fork: ", std::strerror(fork_errno)));
  }
  pid_ = pid;
  socket_ = sockets[0];
  fcntl(socket_, F_SETFL, O_NONBLOCK);
  return absl::OkStatus();
}

void Child::Kill() {
  if (pid_ == 0) return;
  kill(pid_, SIGKILL);
  while (waitpid(pid_, nullptr, 0) < 0 && errno == EINTR) {
  }
  close(socket_);
  pid_ = 0;
  socket_ = -1;
}

absl::Status Child::Await(short events, Clock::time_point deadline) {
  const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - Clock::now()).count();
  pollfd descriptor{socket_, events, 0};
  const int ready = left <= 0 ? 0 : poll(&descriptor, 1, static_cast<int>(left));
  if (ready > 0 || (ready < 0 && errno == EINTR)) return absl::OkStatus();
  if (ready < 0) return absl::UnavailableError(absl::StrCat("poll: ", std::strerror(errno)));
  return absl::DeadlineExceededError("deadline");
}

absl::Status Child::Send(std::string_view data, Clock::time_point deadline) {
  while (!data.empty()) {
    const ssize_t sent = send(socket_, data.data(), data.size(), MSG_NOSIGNAL);
    if (sent >= 0) {
      data.remove_prefix(static_cast<size_t>(sent));
    } else if (errno == EAGAIN) {
      RETURN_IF_ERROR(Await(POLLOUT, deadline));
    } else if (errno != EINTR) {
      return absl::UnavailableError("the template process died");
    }
  }
  return absl::OkStatus();
}

absl::Status Child::Receive(char* data, size_t size, Clock::time_point deadline) {
  while (size > 0) {
    const ssize_t got = recv(socket_, data, size, 0);
    if (got > 0) {
      data += got;
      size -= static_cast<size_t>(got);
    } else if (got < 0 && errno == EAGAIN) {
      RETURN_IF_ERROR(Await(POLLIN, deadline));
    } else if (got == 0 || errno != EINTR) {
      return absl::UnavailableError("the template process died");
    }
  }
  return absl::OkStatus();
}

struct Reply {
  char status = 0;
  std::string text;
};

class HostImpl : public ChatTemplateHost {
 public:
  explicit HostImpl(ChatTemplateHostOptions options) : options_(std::move(options)) {}

  absl::StatusOr<std::string> Render(std::string_view template_text,
                                     std::string_view variables_json) override;
  int idle_child_pid() const override {
    MutexLock lock(&mutex_);
    return idle_.empty() ? 0 : idle_.back()->pid();
  }

 private:
  // Waits until fewer than kChildrenMax render; null if the caller has to start a child.
  std::unique_ptr<Child> Take();
  // Null: it was killed.
  void GiveBack(std::unique_ptr<Child> child);
  absl::StatusOr<std::unique_ptr<Child>> StartChild() const;
  absl::StatusOr<Reply> Receive(Child* child, Clock::time_point deadline) const;
  absl::StatusOr<Reply> Exchange(Child* child, std::string_view template_text,
                                 std::string_view variables_json) const;
  // As Render; resets `child` where it cannot go on.
  absl::StatusOr<std::string> RenderIn(std::unique_ptr<Child>* child,
                                       std::string_view template_text,
                                       std::string_view variables_json) const;

  const ChatTemplateHostOptions options_;
  mutable Mutex mutex_;
  CondVar given_back_;
  std::vector<std::unique_ptr<Child>> idle_ ABSL_GUARDED_BY(mutex_);
  int rendering_ ABSL_GUARDED_BY(mutex_) = 0;
};

std::unique_ptr<Child> HostImpl::Take() {
  MutexLock lock(&mutex_);
  while (rendering_ == kChildrenMax) given_back_.Wait(&mutex_);
  ++rendering_;
  if (idle_.empty()) return nullptr;
  std::unique_ptr<Child> child = std::move(idle_.back());
  idle_.pop_back();
  return child;
}

void HostImpl::GiveBack(std::unique_ptr<Child> child) {
  MutexLock lock(&mutex_);
  --rendering_;
  if (child != nullptr) idle_.push_back(std::move(child));
  given_back_.NotifyOne();
}

absl::StatusOr<Reply> HostImpl::Receive(Child* child, Clock::time_point deadline) const {
  char head[5];
  RETURN_IF_ERROR(child->Receive(head, sizeof(head), deadline));
  uint32_t size = 0;
  std::memcpy(&size, head + 1, sizeof(size));
  // A character is at most four bytes of UTF-8.
  if (size > 4 * options_.output_chars_max + 4096) {
    return absl::UnavailableError("the template process sent nonsense");
  }
  Reply reply{head[0], std::string(size, '\0')};
  RETURN_IF_ERROR(child->Receive(reply.text.data(), size, deadline));
  return reply;
}

absl::StatusOr<std::unique_ptr<Child>> HostImpl::StartChild() const {
  std::vector<std::string> failures;
  for (const std::string& python : PythonCandidates(options_.python)) {
    auto child = std::make_unique<Child>();
    RETURN_IF_ERROR(child->Start(python, options_));
    absl::StatusOr<Reply> ready = Receive(child.get(), Clock::now() + options_.start_deadline);
    if (ready.ok() && ready->status == 'R') return child;
    failures.push_back(absl::StrCat(
        python, " (",
        ready.ok() ? ready->text : "does not start: " + std::string(ready.status().message()),
        ")"));
  }
  return absl::FailedPreconditionError(
      absl::StrCat("no Python interpreter with Jinja2 found; install python3-jinja2 or set "
                   "PACKTRAIN_PYTHON; tried ",
                   absl::StrJoin(failures, ", ")));
}

absl::StatusOr<Reply> HostImpl::Exchange(Child* child, std::string_view template_text,
                                         std::string_view variables_json) const {
  const auto deadline = Clock::now() + options_.render_deadline;
  const uint32_t sizes[2] = {static_cast<uint32_t>(template_text.size()),
                             static_cast<uint32_t>(variables_json.size())};
  const std::string_view head(reinterpret_cast<const char*>(sizes), sizeof(sizes));
  for (std::string_view part : {head, template_text, variables_json}) {
    RETURN_IF_ERROR(child->Send(part, deadline));
  }
  return Receive(child, deadline);
}

absl::StatusOr<std::string> HostImpl::RenderIn(std::unique_ptr<Child>* child,
                                               std::string_view template_text,
                                               std::string_view variables_json) const {
  if (*child == nullptr) {
    ASSIGN_OR_RETURN(*child, StartChild());
  }
  absl::StatusOr<Reply> reply = Exchange(child->get(), template_text, variables_json);
  if (!reply.ok()) {
    child->reset();
    if (absl::IsDeadlineExceeded(reply.status())) {
      return absl::DeadlineExceededError(absl::StrCat(
          "rendering took longer than ", options_.render_deadline.count(), " ms and was stopped"));
    }
    return reply.status();
  }
  if (reply->status == 'O') return std::move(reply->text);
  if (reply->status == 'M') {
    child->reset();  // what the template allocated may still be referenced
    return absl::ResourceExhaustedError(reply->text);
  }
  return absl::InvalidArgumentError(reply->text);
}

absl::StatusOr<std::string> HostImpl::Render(std::string_view template_text,
                                             std::string_view variables_json) {
  if (template_text.size() + variables_json.size() > kInputBytesMax) {
    return absl::ResourceExhaustedError(absl::StrCat("the conversation has ", variables_json.size(),
                                                     " bytes; at most ", kInputBytesMax,
                                                     " are allowed"));
  }
  std::unique_ptr<Child> child = Take();
  absl::StatusOr<std::string> text = RenderIn(&child, template_text, variables_json);
  GiveBack(std::move(child));
  return text;
}

}  // namespace

std::unique_ptr<ChatTemplateHost> ChatTemplateHost::Create(ChatTemplateHostOptions options) {
  return std::make_unique<HostImpl>(std::move(options));
}

}  // namespace packtrain

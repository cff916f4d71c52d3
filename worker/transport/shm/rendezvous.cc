#include "worker/transport/shm/rendezvous.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <thread>
#include <utility>

#include "absl/strings/str_format.h"
#include "common/base/status_macros.h"

namespace packtrain {
namespace {

using Clock = std::chrono::steady_clock;

absl::Status SystemError(absl::StatusCode code, const std::string& what) {
  return absl::Status(code, absl::StrFormat("%s: %s", what, std::strerror(errno)));
}

// An abstract name: it lives in the kernel only and vanishes with its socket.
absl::StatusOr<socklen_t> AbstractAddress(const std::string& name, sockaddr_un* address) {
  std::memset(address, 0, sizeof *address);
  address->sun_family = AF_UNIX;
  if (name.size() + 1 > sizeof address->sun_path) {
    return absl::InvalidArgumentError(absl::StrFormat("channel name '%s' has %d bytes, allowed %d",
                                                      name, name.size(),
                                                      sizeof address->sun_path - 1));
  }
  std::memcpy(address->sun_path + 1, name.data(), name.size());
  return static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + name.size());
}

bool SameUser(int socket) {
  ucred peer{};
  socklen_t size = sizeof peer;
  return getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &peer, &size) == 0 && peer.uid == geteuid();
}

absl::Status SendFd(int socket, int fd) {
  char byte = 0;
  iovec io{&byte, 1};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  msghdr message{};
  message.msg_iov = &io;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof control;
  cmsghdr* c = CMSG_FIRSTHDR(&message);
  c->cmsg_level = SOL_SOCKET;
  c->cmsg_type = SCM_RIGHTS;
  c->cmsg_len = CMSG_LEN(sizeof(int));
  std::memcpy(CMSG_DATA(c), &fd, sizeof fd);
  if (sendmsg(socket, &message, MSG_NOSIGNAL) != 1) {
    return SystemError(absl::StatusCode::kUnavailable, "passing shared memory");
  }
  return absl::OkStatus();
}

UniqueFd ReceiveFd(int socket) {
  char byte = 0;
  iovec io{&byte, 1};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  msghdr message{};
  message.msg_iov = &io;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof control;
  if (recvmsg(socket, &message, MSG_CMSG_CLOEXEC) != 1) return UniqueFd();
  const cmsghdr* c = CMSG_FIRSTHDR(&message);
  if (c == nullptr || c->cmsg_type != SCM_RIGHTS || c->cmsg_len != CMSG_LEN(sizeof(int))) {
    return UniqueFd();
  }
  int fd = -1;
  std::memcpy(&fd, CMSG_DATA(c), sizeof fd);
  return UniqueFd(fd);
}

bool WaitReadable(int fd, Clock::time_point deadline) {
  const auto left =
      std::chrono::duration_cast<std::chrono::milliseconds>(deadline - Clock::now()).count();
  pollfd p{.fd = fd, .events = POLLIN, .revents = 0};
  return poll(&p, 1, static_cast<int>(std::clamp<int64_t>(left, 0, 1 << 30))) > 0;
}

}  // namespace

UniqueFd& UniqueFd::operator=(UniqueFd&& other) noexcept {
  if (fd_ >= 0) close(fd_);
  fd_ = other.release();
  return *this;
}

UniqueFd::~UniqueFd() {
  if (fd_ >= 0) close(fd_);
}

SharedRegion::SharedRegion(void* data, size_t size, UniqueFd socket)
    : data_(data), size_(size), socket_(std::move(socket)) {}

SharedRegion::~SharedRegion() { munmap(data_, size_); }

bool SharedRegion::PeerAlive() const {
  pollfd p{.fd = socket_.get(), .events = POLLRDHUP, .revents = 0};
  return poll(&p, 1, 0) == 0;
}

absl::StatusOr<std::unique_ptr<RegionListener>> RegionListener::Listen(const std::string& name) {
  sockaddr_un address;
  ASSIGN_OR_RETURN(const socklen_t size, AbstractAddress(name, &address));
  UniqueFd socket(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!socket.valid()) return SystemError(absl::StatusCode::kResourceExhausted, "socket");
  if (bind(socket.get(), reinterpret_cast<sockaddr*>(&address), size) != 0 ||
      listen(socket.get(), 4) != 0) {
    return SystemError(absl::StatusCode::kAlreadyExists,
                       absl::StrFormat("listening for channel '%s'", name));
  }
  return std::unique_ptr<RegionListener>(new RegionListener(std::move(socket)));
}

absl::StatusOr<std::unique_ptr<SharedRegion>> RegionListener::Accept(size_t max_bytes,
                                                                     Clock::time_point deadline) {
  while (WaitReadable(socket_.get(), deadline)) {
    UniqueFd peer(accept4(socket_.get(), nullptr, nullptr, SOCK_CLOEXEC));
    // The memory follows the connection at once: a peer that has come is not dropped for a
    // deadline.
    if (!peer.valid() || !SameUser(peer.get()) ||
        !WaitReadable(peer.get(), Clock::now() + std::chrono::seconds(1))) {
      continue;
    }
    const UniqueFd memory = ReceiveFd(peer.get());
    if (!memory.valid()) continue;
    struct stat info {};
    // Sealed against shrinking: otherwise the other process could make our reads fault.
    if (fstat(memory.get(), &info) != 0 || info.st_size <= 0 ||
        static_cast<size_t>(info.st_size) > max_bytes ||
        (fcntl(memory.get(), F_GET_SEALS) & F_SEAL_SHRINK) == 0) {
      return absl::DataLossError(absl::StrFormat(
          "shared memory of %d bytes offered, allowed are %d, sealed", info.st_size, max_bytes));
    }
    const size_t size = static_cast<size_t>(info.st_size);
    void* data = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, memory.get(), 0);
    if (data == MAP_FAILED) return SystemError(absl::StatusCode::kResourceExhausted, "mmap");
    return std::make_unique<SharedRegion>(data, size, std::move(peer));
  }
  return absl::DeadlineExceededError("the peer did not connect in time");
}

absl::StatusOr<std::unique_ptr<SharedRegion>> ShareRegion(
    const std::string& name, size_t bytes, Clock::time_point deadline,
    const std::function<void(std::byte* data)>& initialize) {
  const UniqueFd memory(memfd_create("packtrain-channel", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!memory.valid() || ftruncate(memory.get(), static_cast<off_t>(bytes)) != 0 ||
      // Reserved now, so that a full memory is an error here and no fault later.
      posix_fallocate(memory.get(), 0, static_cast<off_t>(bytes)) != 0 ||
      fcntl(memory.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) != 0) {
    return SystemError(absl::StatusCode::kResourceExhausted,
                       absl::StrFormat("%d bytes of shared memory", bytes));
  }
  void* const data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, memory.get(), 0);
  if (data == MAP_FAILED) return SystemError(absl::StatusCode::kResourceExhausted, "mmap");
  initialize(static_cast<std::byte*>(data));
  auto region = std::make_unique<SharedRegion>(data, bytes, UniqueFd());
  sockaddr_un address;
  ASSIGN_OR_RETURN(const socklen_t address_size, AbstractAddress(name, &address));
  UniqueFd socket;
  while (true) {
    socket = UniqueFd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    if (!socket.valid()) return SystemError(absl::StatusCode::kResourceExhausted, "socket");
    if (connect(socket.get(), reinterpret_cast<sockaddr*>(&address), address_size) == 0) break;
    if (Clock::now() >= deadline) {
      return absl::UnavailableError(absl::StrFormat("nobody listens for channel '%s'", name));
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  if (!SameUser(socket.get())) {
    return absl::UnavailableError(
        absl::StrFormat("channel '%s' is held by another user's process", name));
  }
  RETURN_IF_ERROR(SendFd(socket.get(), memory.get()));
  region->set_connection(std::move(socket));
  return region;
}

}  // namespace packtrain

#pragma once

// How two processes of one host come to share memory: the owner of a name listens on an abstract
// UNIX socket, the other connects and passes a memfd. The connection stays open; when it hangs up
// the other process is gone. Nothing is left behind by a process that was killed.

#include <chrono>
#include <cstddef>
#include <functional>
#include <memory>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace packtrain {

// Owns a file descriptor.
class UniqueFd {
 public:
  explicit UniqueFd(int fd = -1) : fd_(fd) {}
  UniqueFd(UniqueFd&& other) noexcept : fd_(other.release()) {}
  UniqueFd& operator=(UniqueFd&& other) noexcept;
  ~UniqueFd();
  int get() const { return fd_; }
  bool valid() const { return fd_ >= 0; }
  int release() {
    const int fd = fd_;
    fd_ = -1;
    return fd;
  }

 private:
  int fd_;
};

// Memory shared with another process, and the connection that tells whether it lives.
class SharedRegion {
 public:
  SharedRegion(void* data, size_t size, UniqueFd socket);
  ~SharedRegion();
  SharedRegion(const SharedRegion&) = delete;
  SharedRegion& operator=(const SharedRegion&) = delete;

  void set_connection(UniqueFd socket) { socket_ = std::move(socket); }
  std::byte* data() const { return static_cast<std::byte*>(data_); }
  size_t size() const { return size_; }
  // One system call.
  bool PeerAlive() const;

 private:
  void* data_;
  size_t size_;
  UniqueFd socket_;
};

// The waiting side of a name. Any thread may accept, one at a time.
class RegionListener {
 public:
  // Errors: ALREADY_EXISTS if somebody listens on that name.
  static absl::StatusOr<std::unique_ptr<RegionListener>> Listen(const std::string& name);

  // Takes the region of the next process that connects. Regions larger than `max_bytes` are refused
  // with DATA_LOSS, processes of other users are ignored. DEADLINE_EXCEEDED if nobody came.
  absl::StatusOr<std::unique_ptr<SharedRegion>> Accept(
      size_t max_bytes, std::chrono::steady_clock::time_point deadline);

 private:
  explicit RegionListener(UniqueFd socket) : socket_(std::move(socket)) {}
  UniqueFd socket_;
};

// Creates `bytes` of zeroed memory, has `initialize` prepare it, and shares it with the listener on
// `name`, waiting for the listener to appear. Errors: UNAVAILABLE if it did not until `deadline`,
// RESOURCE_EXHAUSTED.
absl::StatusOr<std::unique_ptr<SharedRegion>> ShareRegion(
    const std::string& name, size_t bytes, std::chrono::steady_clock::time_point deadline,
    const std::function<void(std::byte* data)>& initialize);

}  // namespace packtrain

#pragma once

// A folder for the sockets of a deployment's workers, for this user alone.

#include <memory>
#include <string>

#include "absl/status/statusor.h"

namespace packtrain {

class SocketFolder {
 public:
  // Creates one in `parent`, and removes what processes that were killed have left of theirs there:
  // folders of the same user that nobody holds locked. Errors: RESOURCE_EXHAUSTED.
  static absl::StatusOr<std::unique_ptr<SocketFolder>> Create(const std::string& parent);
  // Removes it with all that is in it.
  ~SocketFolder();
  SocketFolder(const SocketFolder&) = delete;
  SocketFolder& operator=(const SocketFolder&) = delete;

  const std::string& path() const { return path_; }

 private:
  SocketFolder(std::string path, int lock) : path_(std::move(path)), lock_(lock) {}

  const std::string path_;
  const int lock_;  // held until the process ends, however it does
};

}  // namespace packtrain

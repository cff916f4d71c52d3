#pragma once

// A whole file mapped read-only for as long as the object lives. Pages are read on first touch; a
// file that somebody shortens meanwhile ends the process with SIGBUS, as for every mapping.

#include <cstddef>
#include <span>
#include <string>

#include "absl/status/statusor.h"

namespace packtrain {

class MappedFile {
 public:
  // Errors: NOT_FOUND (no such file) and what else the system says; FAILED_PRECONDITION for
  // what is no regular file. Never blocks on pipes or devices.
  static absl::StatusOr<MappedFile> Open(const std::string& path);

  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&&) = delete;
  ~MappedFile();

  std::span<const std::byte> bytes() const { return bytes_; }

 private:
  explicit MappedFile(std::span<const std::byte> bytes) : bytes_(bytes) {}

  std::span<const std::byte> bytes_;
};

}  // namespace packtrain

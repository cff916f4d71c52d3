#pragma once

// Files that tests read and write.

#include <cstddef>
#include <span>
#include <string>

namespace packtrain {

// The whole file; CHECKs that it can be read.
std::string ReadFileOrDie(const std::string& path);

inline std::span<const std::byte> AsBytes(const std::string& text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

// A directory of this process's own, removed with everything in it at the end of the scope.
class TempDir {
 public:
  TempDir();
  ~TempDir();
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;
  const std::string& path() const { return path_; }
  std::string File(const std::string& name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

}  // namespace packtrain

#include "coordinator/fleet/socket_folder.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace packtrain {
namespace {

namespace fs = std::filesystem;

constexpr char kPrefix[] = "packtrain-";
constexpr char kUnique[] = "XXXXXX";
constexpr char kLock[] = "/lock", kLockToBe[] = "/lock-to-be";

// A lock file appears under its name only when it is locked, so that a folder that is being made is
// never taken for an abandoned one. -1: errno says why not.
int LockNew(const std::string& folder) {
  const std::string early = folder + kLockToBe;
  const int fd = open(early.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
  if (fd < 0) return -1;
  if (flock(fd, LOCK_EX | LOCK_NB) == 0 && rename(early.c_str(), (folder + kLock).c_str()) == 0) {
    return fd;
  }
  const int error = errno;
  close(fd);
  errno = error;
  return -1;
}

void RemoveIfAbandoned(const fs::directory_entry& entry) {
  const std::string name = entry.path().filename();
  if (!name.starts_with(kPrefix) || name.size() != strlen(kPrefix) + strlen(kUnique)) return;
  struct stat info {};
  if (lstat(entry.path().c_str(), &info) != 0 || !S_ISDIR(info.st_mode) ||
      info.st_uid != geteuid()) {
    return;
  }
  const int fd = open((entry.path().string() + kLock).c_str(), O_RDWR | O_CLOEXEC | O_NOFOLLOW);
  if (fd < 0) return;
  std::error_code error;
  if (flock(fd, LOCK_EX | LOCK_NB) == 0) fs::remove_all(entry.path(), error);
  close(fd);
}

}  // namespace

absl::StatusOr<std::unique_ptr<SocketFolder>> SocketFolder::Create(const std::string& parent) {
  std::error_code error;
  fs::directory_iterator it(parent, error);
  for (; !error && it != fs::directory_iterator(); it.increment(error)) RemoveIfAbandoned(*it);
  std::string path = absl::StrCat(parent, "/", kPrefix, kUnique);
  if (mkdtemp(path.data()) == nullptr) {
    return absl::ResourceExhaustedError(
        absl::StrFormat("%s: cannot create a folder: %s", parent, std::strerror(errno)));
  }
  const int lock = LockNew(path);
  if (lock < 0) {
    const absl::Status failed = absl::ResourceExhaustedError(
        absl::StrFormat("%s: cannot be locked: %s", path, std::strerror(errno)));
    fs::remove_all(path, error);
    return failed;
  }
  return std::unique_ptr<SocketFolder>(new SocketFolder(std::move(path), lock));
}

SocketFolder::~SocketFolder() {
  std::error_code error;
  fs::remove_all(path_, error);
  close(lock_);
}

}  // namespace packtrain

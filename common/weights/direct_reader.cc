#include "common/weights/direct_reader.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <thread>
#include <utility>

#include "absl/strings/str_format.h"
#include "common/base/mutex.h"
#include "common/base/status_macros.h"

namespace packtrain {
namespace {

constexpr uint64_t kBlock = 4096;  // what O_DIRECT wants offsets, lengths and addresses to be
constexpr uint64_t kChunk = 8 << 20;
constexpr std::chrono::milliseconds kProgressEvery(200);

uint64_t RoundDown(uint64_t value) { return value / kBlock * kBlock; }
uint64_t AddressOf(const DirectRead& r) { return reinterpret_cast<uintptr_t>(r.to); }

// Whether the storage can write it to its target.
bool IsAligned(const DirectRead& r) { return (r.offset | r.bytes | AddressOf(r)) % kBlock == 0; }

// Reads that follow each other in file and memory as one, in the order of the file.
std::vector<DirectRead> Merge(std::vector<DirectRead> reads) {
  std::sort(reads.begin(), reads.end(), [](const DirectRead& a, const DirectRead& b) {
    return std::pair(a.file, a.offset) < std::pair(b.file, b.offset);
  });
  std::vector<DirectRead> merged;
  for (const DirectRead& read : reads) {
    DirectRead* last = merged.empty() ? nullptr : &merged.back();
    if (last != nullptr && last->file == read.file && last->offset + last->bytes == read.offset &&
        last->to + last->bytes == read.to) {
      last->bytes += read.bytes;
    } else {
      merged.push_back(read);
    }
  }
  return merged;
}

// Cuts a read into chunks; all but the first and the last are aligned if any can be.
void Cut(const DirectRead& read, std::vector<DirectRead>* chunks) {
  const uint64_t end = read.offset + read.bytes;
  const bool congruent = (AddressOf(read) - read.offset) % kBlock == 0;
  for (uint64_t at = read.offset; at < end;) {
    uint64_t next = std::min(at + kChunk, end);
    if (congruent && at % kBlock != 0) {
      next = std::min(RoundDown(at) + kBlock, end);
    } else if (congruent && RoundDown(next) > at) {
      next = RoundDown(next);
    }
    chunks->push_back({read.file, at, next - at, read.to + (at - read.offset)});
    at = next;
  }
}

// One file, read directly if its filesystem allows it.
class InputFile {
 public:
  ~InputFile() {
    if (fd_ >= 0) close(fd_);
  }

  absl::Status Open(const std::string& path) {
    path_ = path;
    fd_ = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_DIRECT);
    direct_ = fd_ >= 0;
    if (fd_ < 0 && errno == EINVAL) fd_ = open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (fd_ >= 0) return absl::OkStatus();
    return absl::Status(
        errno == EACCES ? absl::StatusCode::kPermissionDenied : absl::StatusCode::kNotFound,
        absl::StrFormat("%s: %s", path, std::strerror(errno)));
  }

  // Reads at least `needed` bytes at an aligned offset into an aligned buffer of `size` bytes.
  absl::Status Read(uint64_t offset, uint64_t size, uint64_t needed, std::byte* buffer) const {
    uint64_t done = 0;
    while (done < needed) {
      const ssize_t n = pread(fd_, buffer + done, size - done, static_cast<off_t>(offset + done));
      if (n < 0 && errno == EINTR) continue;
      if (n < 0 && errno == EINVAL && direct_.exchange(false)) {
        // Some filesystems take the flag and refuse the read.
        fcntl(fd_, F_SETFL, 0);
        continue;
      }
      if (n <= 0) {
        return absl::DataLossError(absl::StrFormat("%s: at offset %d: %s", path_, offset + done,
                                                   n == 0 ? "file ends" : std::strerror(errno)));
      }
      done += static_cast<uint64_t>(n);
    }
    if (!direct_) {
      posix_fadvise(fd_, static_cast<off_t>(offset), static_cast<off_t>(size), POSIX_FADV_DONTNEED);
    }
    return absl::OkStatus();
  }

 private:
  std::string path_;
  int fd_ = -1;
  mutable std::atomic<bool> direct_{true};
};

struct FreeDeleter {
  void operator()(std::byte* p) const { std::free(p); }
};

class ParallelReader {
 public:
  ParallelReader(const std::vector<InputFile>& files, std::vector<DirectRead> chunks)
      : files_(files), chunks_(std::move(chunks)) {}

  // One thread's work: chunks in file order, so that the disk sees sequential reads.
  void Work() {
    const std::unique_ptr<std::byte, FreeDeleter> buffer(
        static_cast<std::byte*>(std::aligned_alloc(kBlock, kChunk + 2 * kBlock)));
    while (true) {
      const size_t i = next_.fetch_add(1);
      if (i >= chunks_.size() || failed_) break;
      const DirectRead& c = chunks_[i];
      const absl::Status status = IsAligned(c)
                                      ? files_[c.file].Read(c.offset, c.bytes, c.bytes, c.to)
                                      : ReadByWayOf(buffer.get(), c);
      if (!status.ok()) {
        Fail(status);
        break;
      }
      done_.fetch_add(c.bytes);
    }
    MutexLock lock(&mutex_);
    ++finished_;
    changed_.NotifyAll();
  }

  absl::Status Wait(int threads, uint64_t total,
                    const std::function<bool(uint64_t, uint64_t)>& progress) {
    MutexLock lock(&mutex_);
    while (true) {
      const bool go_on = !progress || progress(done_.load(), total);
      if (!go_on) FailLocked(absl::CancelledError("reading was cancelled"));
      if (finished_ == threads) return status_;
      changed_.WaitUntil(&mutex_, std::chrono::steady_clock::now() + kProgressEvery);
    }
  }

 private:
  absl::Status ReadByWayOf(std::byte* buffer, const DirectRead& c) const {
    const uint64_t begin = RoundDown(c.offset);
    const uint64_t needed = c.offset + c.bytes - begin;
    const uint64_t size = RoundDown(needed + kBlock - 1);
    RETURN_IF_ERROR(files_[c.file].Read(begin, size, needed, buffer));
    std::memcpy(c.to, buffer + (c.offset - begin), c.bytes);
    return absl::OkStatus();
  }

  void Fail(const absl::Status& status) {
    MutexLock lock(&mutex_);
    FailLocked(status);
  }
  void FailLocked(const absl::Status& status) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (status_.ok()) status_ = status;
    failed_ = true;
  }

  const std::vector<InputFile>& files_;
  const std::vector<DirectRead> chunks_;
  std::atomic<size_t> next_{0};
  std::atomic<uint64_t> done_{0};
  std::atomic<bool> failed_{false};
  Mutex mutex_;
  CondVar changed_;
  int finished_ ABSL_GUARDED_BY(mutex_) = 0;
  absl::Status status_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace

absl::Status ReadDirect(const std::vector<std::string>& paths, std::vector<DirectRead> reads,
                        int threads,
                        const std::function<bool(uint64_t done, uint64_t total)>& progress) {
  std::vector<InputFile> files(paths.size());
  for (size_t i = 0; i < paths.size(); ++i) RETURN_IF_ERROR(files[i].Open(paths[i]));
  std::vector<DirectRead> chunks;
  uint64_t total = 0;
  for (const DirectRead& read : Merge(std::move(reads))) {
    total += read.bytes;
    Cut(read, &chunks);
  }
  ParallelReader reader(files, std::move(chunks));
  std::vector<std::thread> workers;
  for (int i = 0; i < threads; ++i) workers.emplace_back([&reader] { reader.Work(); });
  const absl::Status status = reader.Wait(threads, total, progress);
  for (std::thread& worker : workers) worker.join();
  return status;
}

}  // namespace packtrain

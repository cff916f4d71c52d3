// bench_load FILE.gguf [GB [ROUNDS]]: fills a weight segment with the file's first tensors and
// reads the same stretch of the file into buffers (O_DIRECT, blocks of 8 MiB; one thread, as dd
// does, and as many as the load has), in turns. The share is the one that a load reaches of the
// better of the two. Storage that is shared or has an allowance for bursts gives whoever comes
// after a pause more: each measurement follows a reading that does not count.

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "common/base/check.h"
#include "common/weights/gguf.h"
#include "common/weights/segment.h"

namespace packtrain {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kThreads = 4;
constexpr uint64_t kBlock = 8 << 20;

double Rate(uint64_t bytes, Clock::time_point begin) {
  return static_cast<double>(bytes) / 1e9 /
         std::chrono::duration<double>(Clock::now() - begin).count();
}

struct FreeDeleter {
  void operator()(void* p) const { std::free(p); }
};

double Read(const std::string& path, uint64_t bytes, int threads, uint64_t block) {
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_DIRECT);
  CHECK(fd >= 0);
  std::atomic<uint64_t> next = 0, done = 0;
  const Clock::time_point begin = Clock::now();
  std::vector<std::thread> readers;
  for (int i = 0; i < threads; ++i) {
    readers.emplace_back([&] {
      const std::unique_ptr<void, FreeDeleter> buffer(std::aligned_alloc(4096, block));
      for (uint64_t at = next.fetch_add(block); at < bytes; at = next.fetch_add(block)) {
        const ssize_t n = pread(fd, buffer.get(), block, static_cast<off_t>(at));
        if (n > 0) done += static_cast<uint64_t>(n);
      }
    });
  }
  for (std::thread& reader : readers) reader.join();
  const double rate = Rate(done, begin);
  close(fd);
  return rate;
}

double Load(const GgufFile& file, const std::vector<const GgufTensor*>& tensors, uint64_t bytes) {
  const Clock::time_point begin = Clock::now();
  const SegmentLayout layout = PlanSegment(file, tensors);
  const auto fds = CreateSegments(std::span(&layout.bytes, 1));
  CHECK_MSG(fds.ok(), std::string(fds.status().message()));
  const auto segment =
      Segment::Open(fds->front(), file, layout, {.threads = kThreads, .progress = {}});
  CHECK_MSG(segment.ok(), std::string(segment.status().message()));
  const double rate = Rate(bytes, begin);
  const std::span<const std::byte> wanted = file.Data(*tensors.back());
  const std::span<const std::byte> found = (*segment)->Find(tensors.back()->name);
  CHECK(std::memcmp(found.data(), wanted.data(), std::min<size_t>(wanted.size(), 1 << 20)) == 0);
  close(fds->front());
  return rate;
}

void Run(const std::string& path, double gb, int rounds) {
  const auto file = GgufFile::Open(path);
  CHECK_MSG(file.ok(), std::string(file.status().message()));
  std::vector<const GgufTensor*> tensors;
  uint64_t bytes = 0;
  for (const GgufTensor& tensor : (*file)->tensors()) {
    if (tensor.shard != 0 || static_cast<double>(bytes) > gb * 1e9) break;
    tensors.push_back(&tensor);
    bytes += tensor.bytes;
  }
  std::vector<double> shares;
  const auto settle = [&] { Read(path, bytes / 2, kThreads, kBlock); };
  for (int i = 0; i < rounds; ++i) {
    settle();
    const double parallel = Read(path, bytes, kThreads, kBlock);
    settle();
    const double one = Read(path, bytes, 1, kBlock);
    settle();
    const double load = Load(**file, tensors, bytes);
    shares.push_back(load / std::max(parallel, one));
    std::printf(
        "%5.2f GB: %d threads %5.2f GB/s, one %5.2f GB/s, load %5.2f GB/s, share %3.0f %%\n",
        static_cast<double>(bytes) / 1e9, kThreads, parallel, one, load, 100 * shares.back());
  }
  std::sort(shares.begin(), shares.end());
  std::printf("median share %.0f %%\n", 100 * shares[shares.size() / 2]);
}

}  // namespace
}  // namespace packtrain

int main(int argc, char** argv) {
  if (argc < 2) {
    std::fprintf(stderr, "usage: bench_load FILE.gguf [GB [ROUNDS]]\n");
    return 2;
  }
  packtrain::Run(argv[1], argc > 2 ? std::atof(argv[2]) : 4, argc > 3 ? std::atoi(argv[3]) : 5);
  return 0;
}

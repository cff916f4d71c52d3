// bench_load FILE.gguf [GB]: fills a weight segment with the file's first tensors and reads the
// same stretch of the file as dd does (one thread, O_DIRECT, blocks of 8 MiB), in turns. The share
// is the one that a load reaches of what the storage gives.

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "common/base/check.h"
#include "common/weights/gguf.h"
#include "common/weights/segment.h"

namespace packtrain {
namespace {

using Clock = std::chrono::steady_clock;

double Rate(uint64_t bytes, Clock::time_point begin) {
  return static_cast<double>(bytes) / 1e9 /
         std::chrono::duration<double>(Clock::now() - begin).count();
}

struct FreeDeleter {
  void operator()(void* p) const { std::free(p); }
};

double ReadLikeDd(const std::string& path, uint64_t bytes) {
  constexpr size_t kBlock = 8 << 20;
  const std::unique_ptr<void, FreeDeleter> buffer(std::aligned_alloc(4096, kBlock));
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_DIRECT);
  CHECK(fd >= 0);
  const Clock::time_point begin = Clock::now();
  uint64_t done = 0;
  while (done < bytes) {
    const ssize_t n = read(fd, buffer.get(), kBlock);
    if (n <= 0) break;
    done += static_cast<uint64_t>(n);
  }
  const double rate = Rate(done, begin);
  close(fd);
  return rate;
}

double Load(const GgufFile& file, const std::vector<const GgufTensor*>& tensors, uint64_t bytes) {
  const Clock::time_point begin = Clock::now();
  const SegmentLayout layout = PlanSegment(file, tensors);
  const auto fds = CreateSegments(std::span(&layout.bytes, 1));
  CHECK_MSG(fds.ok(), std::string(fds.status().message()));
  const auto segment = Segment::Open(fds->front(), file, layout, {});
  CHECK_MSG(segment.ok(), std::string(segment.status().message()));
  const double rate = Rate(bytes, begin);
  const std::span<const std::byte> wanted = file.Data(*tensors.back());
  const std::span<const std::byte> found = (*segment)->Find(tensors.back()->name);
  CHECK(std::memcmp(found.data(), wanted.data(), std::min<size_t>(wanted.size(), 1 << 20)) == 0);
  close(fds->front());
  return rate;
}

void Run(const std::string& path, double gb) {
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
  for (int i = 0; i < 5; ++i) {
    const double storage = ReadLikeDd(path, bytes);
    const double load = Load(**file, tensors, bytes);
    shares.push_back(load / storage);
    std::printf("%5.2f GB: storage %5.2f GB/s, load %5.2f GB/s, share %3.0f %%\n",
                static_cast<double>(bytes) / 1e9, storage, load, 100 * shares.back());
  }
  std::sort(shares.begin(), shares.end());
  std::printf("median share %.0f %%\n", 100 * shares[shares.size() / 2]);
}

}  // namespace
}  // namespace packtrain

int main(int argc, char** argv) {
  if (argc < 2) {
    std::fprintf(stderr, "usage: bench_load FILE.gguf [GB]\n");
    return 2;
  }
  packtrain::Run(argv[1], argc > 2 ? std::atof(argv[2]) : 4);
  return 0;
}

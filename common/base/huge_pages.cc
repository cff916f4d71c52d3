#include "common/base/huge_pages.h"

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <thread>
#include <vector>

#include "common/base/check.h"

namespace packtrain {
namespace {

using Clock = std::chrono::steady_clock;

// Debian 12's C library does not name it yet.
constexpr int kCollapse = 25;  // MADV_COLLAPSE
// Faults of ordinary pages take about as long; a kernel that must move others' pages to make a huge
// one may take far longer. The first ones may.
constexpr std::chrono::milliseconds kTimeMax(4), kGrace(200);

// Those at the beginning of the range that could be taken.
size_t TakeInOrder(std::byte* data, size_t bytes, const std::atomic<bool>& stop) {
  const Clock::time_point begin = Clock::now();
  size_t done = 0;
  while (done < bytes && !stop) {
    // One page must be there; the rest is made with it.
    std::atomic_ref<std::byte>(data[done]).store(std::byte{0}, std::memory_order_relaxed);
    if (madvise(data + done, kHugePageBytes, kCollapse) != 0) break;
    done += kHugePageBytes;
    if (Clock::now() - begin > kGrace + done / kHugePageBytes * kTimeMax) break;
  }
  return done;
}

}  // namespace

void* MapShared(int fd, size_t bytes, int protection) {
  void* const room = mmap(nullptr, bytes + kHugePageBytes, PROT_NONE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (room == MAP_FAILED) return MAP_FAILED;
  auto* const begin = static_cast<std::byte*>(room);
  const size_t before = -reinterpret_cast<uintptr_t>(room) % kHugePageBytes;
  const int flags = MAP_SHARED | MAP_FIXED | (fd < 0 ? MAP_ANONYMOUS : 0);
  void* const mapped = mmap(begin + before, bytes, protection, flags, fd, 0);
  if (mapped == MAP_FAILED) {
    munmap(room, bytes + kHugePageBytes);
    return MAP_FAILED;
  }
  // Whole pages: what is left of the room on both sides.
  constexpr size_t kPage = 4096;
  const size_t end = before + (bytes + kPage - 1) / kPage * kPage;
  if (before > 0) munmap(begin, before);
  if (end < bytes + kHugePageBytes) munmap(begin + end, bytes + kHugePageBytes - end);
  return mapped;
}

size_t TakeHugePages(std::byte* data, size_t bytes, int threads) {
  CHECK(reinterpret_cast<uintptr_t>(data) % kHugePageBytes == 0 && bytes % kHugePageBytes == 0);
  const size_t pages = bytes / kHugePageBytes;
  const size_t shares =
      std::clamp<size_t>(static_cast<size_t>(threads), 1, std::max<size_t>(pages, 1));
  std::atomic<size_t> taken{0};
  std::atomic<bool> stop{false};
  std::vector<std::thread> workers;
  for (size_t i = 0; i < shares; ++i) {
    const size_t first = pages * i / shares * kHugePageBytes,
                 last = pages * (i + 1) / shares * kHugePageBytes;
    workers.emplace_back([&, first, last] {
      const size_t done = TakeInOrder(data + first, last - first, stop);
      taken += done;
      if (done < last - first) stop = true;
    });
  }
  for (std::thread& worker : workers) worker.join();
  return taken;
}

}  // namespace packtrain

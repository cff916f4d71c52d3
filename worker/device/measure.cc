#include "worker/device/measure.h"

#include <fcntl.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <barrier>
#include <chrono>
#include <csignal>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>
#include <new>
#include <thread>

#include "absl/strings/str_cat.h"

namespace packtrain {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

double SecondsSince(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// Cores this process may run on, in the system's numbering.
std::vector<int> AllowedCpus() {
  cpu_set_t set;
  CPU_ZERO(&set);
  std::vector<int> cpus;
  if (sched_getaffinity(0, sizeof(set), &set) != 0) return cpus;
  for (int i = 0; i < CPU_SETSIZE; ++i) {
    if (CPU_ISSET(i, &set)) cpus.push_back(i);
  }
  return cpus;
}

// Binds the calling thread; where that is not allowed it stays where it is.
void BindTo(int cpu) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(cpu, &set);
  (void)sched_setaffinity(0, sizeof(set), &set);
}

class Mapping {
 public:
  Mapping(size_t bytes, int flags) : bytes_(bytes) {
    data_ = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, flags | MAP_ANONYMOUS, -1, 0);
  }
  ~Mapping() {
    if (ok()) munmap(data_, bytes_);
  }
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;
  bool ok() const { return data_ != MAP_FAILED; }
  std::byte* data() const { return static_cast<std::byte*>(data_); }

 private:
  void* data_;
  size_t bytes_;
};

using Lanes = uint64_t __attribute__((vector_size(64), aligned(64)));

// A sum over the bytes, so that no load can be left out.
uint64_t ReadAll(const std::byte* data, size_t bytes) {
  const Lanes* in = reinterpret_cast<const Lanes*>(data);
  Lanes sums[4] = {};
  for (size_t i = 0; i + 4 <= bytes / sizeof(Lanes); i += 4) {
    for (size_t k = 0; k < 4; ++k) sums[k] ^= in[i + k];
  }
  const Lanes all = sums[0] ^ sums[1] ^ sums[2] ^ sums[3];
  uint64_t result = 0;
  for (int i = 0; i < 8; ++i) result ^= all[i];
  return result;
}

// Best rate of several passes in which every thread reads its own part once.
double ReadRateOf(int threads, std::byte* data, size_t bytes, double seconds) {
  const size_t part = bytes / static_cast<size_t>(threads) / 4096 * 4096;
  const std::vector<int> cpus = AllowedCpus();
  std::atomic<uint64_t> sink{0};
  std::atomic<bool> stop{false};
  std::barrier line(threads + 1);
  std::vector<std::jthread> workers;
  for (int t = 0; t < threads; ++t) {
    workers.emplace_back([&, t] {
      if (!cpus.empty()) BindTo(cpus[static_cast<size_t>(t) % cpus.size()]);
      for (;;) {
        line.arrive_and_wait();
        if (stop) return;
        sink ^= ReadAll(data + static_cast<size_t>(t) * part, part);
        line.arrive_and_wait();
      }
    });
  }
  double best = 0;
  const Clock::time_point start = Clock::now();
  for (int pass = 0; pass < 3 || SecondsSince(start) < seconds; ++pass) {
    line.arrive_and_wait();
    const Clock::time_point begin = Clock::now();
    line.arrive_and_wait();
    const double bytes_read = static_cast<double>(part) * threads;
    best = std::max(best, bytes_read / SecondsSince(begin) / 1e9);
    if (SecondsSince(start) > 8 * seconds) break;  // a slow machine: what there is must do
  }
  stop = true;
  line.arrive_and_wait();
  return best;
}

// Two counters, each written by one side.
struct FlagPair {
  alignas(64) std::atomic<uint32_t> ping{0};
  alignas(64) std::atomic<uint32_t> pong{0};
};

void Answer(FlagPair* flags, int cpu, Clock::time_point deadline) {
  BindTo(cpu);
  for (uint32_t seen = 0;;) {
    const uint32_t now = flags->ping.load(std::memory_order_acquire);
    if (now == seen) {
      if (Clock::now() > deadline) return;
      continue;
    }
    seen = now;
    flags->pong.store(now, std::memory_order_release);
    if (now == ~uint32_t{0}) return;
  }
}

// Median trip in us; 0 if the other side was not there for long enough.
double Ask(FlagPair* flags, int cpu, Clock::time_point deadline) {
  cpu_set_t before;
  const bool restore = sched_getaffinity(0, sizeof(before), &before) == 0;
  BindTo(cpu);
  std::vector<double> trips;
  constexpr uint32_t kTrips = 20000;
  trips.reserve(kTrips);
  bool late = false;
  for (uint32_t i = 1; i <= kTrips && !late; ++i) {
    const Clock::time_point begin = Clock::now();
    flags->ping.store(i, std::memory_order_release);
    while (flags->pong.load(std::memory_order_acquire) != i && !late) {
      late = Clock::now() > deadline;
    }
    if (!late) trips.push_back(SecondsSince(begin) * 1e6);
  }
  flags->ping.store(~uint32_t{0}, std::memory_order_release);
  if (restore) (void)sched_setaffinity(0, sizeof(before), &before);
  if (trips.size() < 1000) return 0;
  std::nth_element(trips.begin(), trips.begin() + static_cast<long>(trips.size() / 2), trips.end());
  return trips[trips.size() / 2];
}

Clock::time_point DeadlineOf(const MeasureOptions& options) {
  return Clock::now() + std::chrono::duration_cast<Clock::duration>(
                            std::chrono::duration<double>(4 * options.seconds_each));
}

std::string LargestGguf(const std::string& folder) {
  std::string best;
  uintmax_t best_size = 0;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(folder, error)) {
    const uintmax_t size = entry.path().extension() == ".gguf" ? entry.file_size(error) : 0;
    if (!error && size > best_size) best_size = size, best = entry.path().string();
  }
  return best;
}

bool IsRotational(dev_t device) {
  // A partition has its disk's queue one folder up.
  const std::string base = absl::StrCat("/sys/dev/block/", major(device), ":", minor(device), "/");
  for (const char* place : {"queue/rotational", "../queue/rotational"}) {
    if (std::ifstream in(base + place); in) return in.get() == '1';
  }
  return false;
}

}  // namespace

std::vector<ReadRate> MeasureDramRead(int max_threads, uint64_t usable_bytes,
                                      uint64_t largest_cache_bytes, const MeasureOptions& options) {
  const uint64_t wanted = std::max(options.dram_bytes, 4 * largest_cache_bytes);
  const size_t bytes = std::min(wanted, usable_bytes / 4) >> 21 << 21;
  if (max_threads < 1 || bytes < 2 * largest_cache_bytes || bytes == 0) return {};
  const Mapping memory(bytes, MAP_PRIVATE);
  if (!memory.ok()) return {};
  (void)madvise(memory.data(), bytes, MADV_HUGEPAGE);
  std::memset(memory.data(), 1, bytes);
  std::vector<int> counts;
  for (int n = 1; n < max_threads; n *= 2) counts.push_back(n);
  counts.push_back(max_threads);
  std::vector<ReadRate> rates;
  for (int n : counts) {
    rates.push_back({n, ReadRateOf(n, memory.data(), bytes, options.seconds_each)});
  }
  return rates;
}

double MeasureThreadRoundTrip(const MeasureOptions& options) {
  const std::vector<int> cpus = AllowedCpus();
  if (cpus.size() < 2) return 0;
  FlagPair flags;
  const Clock::time_point deadline = DeadlineOf(options);
  const std::jthread other([&] { Answer(&flags, cpus.back(), deadline); });
  return Ask(&flags, cpus.front(), deadline);
}

double MeasureProcessRoundTrip(const MeasureOptions& options) {
  const std::vector<int> cpus = AllowedCpus();
  if (cpus.size() < 2) return 0;
  const Mapping memory(sizeof(FlagPair), MAP_SHARED);
  if (!memory.ok()) return 0;
  auto* flags = new (memory.data()) FlagPair;
  const Clock::time_point deadline = DeadlineOf(options);
  const pid_t child = fork();
  if (child < 0) return 0;
  if (child == 0) {
    Answer(flags, cpus.back(), deadline);
    _exit(0);
  }
  const double trip = Ask(flags, cpus.front(), deadline);
  (void)waitpid(child, nullptr, 0);  // it ends by the last word or by the deadline
  return trip;
}

StorageFacts MeasureStorageRead(const std::string& path, const MeasureOptions& options) {
  StorageFacts facts;
  facts.path = path;
  std::error_code error;
  const std::string file = fs::is_directory(path, error) ? LargestGguf(path) : path;
  struct stat info {};
  const int fd = open(file.c_str(), O_RDONLY | O_DIRECT | O_CLOEXEC);
  if (fd < 0) return facts;  // also where the file system knows no direct reads
  constexpr size_t kBlock = 4u << 20;
  if (fstat(fd, &info) != 0 || !S_ISREG(info.st_mode) ||
      static_cast<uint64_t>(info.st_size) < kBlock) {
    close(fd);
    return facts;
  }
  facts.rotational = IsRotational(info.st_dev);
  const uint64_t blocks = static_cast<uint64_t>(info.st_size) / kBlock;
  std::atomic<uint64_t> next{0}, bytes_read{0};
  const Clock::time_point start = Clock::now();
  {
    std::vector<std::jthread> readers;
    for (int t = 0; t < 8; ++t) {
      readers.emplace_back([&] {
        const std::unique_ptr<void, void (*)(void*)> buffer(aligned_alloc(4096, kBlock), free);
        while (buffer != nullptr && SecondsSince(start) < 4 * options.seconds_each) {
          const uint64_t block = next++;
          if (block >= blocks) return;
          const ssize_t got = pread(fd, buffer.get(), kBlock, static_cast<off_t>(block * kBlock));
          if (got <= 0) return;
          bytes_read += static_cast<uint64_t>(got);
        }
      });
    }
  }
  if (bytes_read > 0) {
    facts.file = file;
    facts.read_gb_per_s = static_cast<double>(bytes_read.load()) / SecondsSince(start) / 1e9;
  }
  close(fd);
  return facts;
}

}  // namespace packtrain

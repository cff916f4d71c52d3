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
#include <functional>
#include <memory>
#include <new>
#include <optional>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "worker/device/measured_types.h"
#include "worker/device/weight_memory.h"

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

using Lanes = uint64_t __attribute__((vector_size(16), aligned(16)));

// A sum over the bytes, so that no load can be left out. Several places at a time, asked for early:
// one place alone waits for the prefetcher at the end of every page.
uint64_t ReadAll(const std::byte* data, size_t bytes) {
  constexpr size_t kPlaces = 4, kLine = 64, kAhead = 1024;
  const size_t part = bytes / kPlaces / kLine * kLine;
  Lanes sums[kPlaces] = {};
  for (size_t at = 0; at < part; at += kLine) {
    for (size_t p = 0; p < kPlaces; ++p) {
      const std::byte* line = data + p * part + at;
      __builtin_prefetch(line + kAhead);
      const auto* in = reinterpret_cast<const Lanes*>(line);
      sums[p] ^= in[0] ^ in[1] ^ in[2] ^ in[3];
    }
  }
  const Lanes all = sums[0] ^ sums[1] ^ sums[2] ^ sums[3];
  return all[0] ^ all[1];
}

// Least seconds of several passes in which every thread does its own part once, each bound to a
// core.
double BestPass(int threads, double seconds, const std::function<void(size_t thread)>& part) {
  const std::vector<int> cpus = AllowedCpus();
  std::atomic<bool> stop{false};
  std::barrier line(threads + 1);
  std::vector<std::jthread> workers;
  for (int t = 0; t < threads; ++t) {
    workers.emplace_back([&, t] {
      if (!cpus.empty()) BindTo(cpus[static_cast<size_t>(t) % cpus.size()]);
      for (;;) {
        line.arrive_and_wait();
        if (stop) return;
        part(static_cast<size_t>(t));
        line.arrive_and_wait();
      }
    });
  }
  double best = 1e9;
  const Clock::time_point start = Clock::now();
  for (int pass = 0; pass < 3 || SecondsSince(start) < seconds; ++pass) {
    const Clock::time_point begin = Clock::now();
    line.arrive_and_wait();
    line.arrive_and_wait();
    best = std::min(best, SecondsSince(begin));
    if (SecondsSince(start) > 8 * seconds) break;  // a slow machine: what there is must do
  }
  stop = true;
  line.arrive_and_wait();
  return best;
}

double ReadRateOf(int threads, std::byte* data, size_t bytes, double seconds) {
  const size_t part = bytes / static_cast<size_t>(threads) / 4096 * 4096;
  std::atomic<uint64_t> sink{0};
  const double best =
      BestPass(threads, seconds, [&](size_t t) { sink ^= ReadAll(data + t * part, part); });
  return static_cast<double>(part) * threads / best / 1e9;
}

// Weights of one type in `data`, each thread with its own part of them, times `tokens` tokens.
class WeightPasses {
 public:
  WeightPasses(TensorType type, const WeightKernel& kernel, int threads, const std::byte* data)
      : row_bytes_(RowBytes(type, kColumns)), kernel_(kernel), threads_(threads), data_(data) {
    const size_t stride = kernel.activation_bytes(kColumns);
    activations_.reset(static_cast<std::byte*>(std::aligned_alloc(64, stride * kTokens)));
    const std::vector<float> x(kColumns, 0.01F);
    for (size_t i = 0; i < kTokens; ++i) {
      pointers_[i] = activations_.get() + i * stride;
      kernel.prepare(x.data(), kColumns, activations_.get() + i * stride);
    }
    y_.resize(static_cast<size_t>(threads) * kTokens * kRowsAtOnce);
  }

  // Bytes and seconds of a pass over `part` bytes per thread.
  std::pair<double, double> Run(size_t part, size_t tokens, double seconds) {
    const size_t rows = std::max<size_t>(part / row_bytes_, 1);
    const double best = BestPass(threads_, seconds, [&](size_t t) {
      const std::byte* w = data_ + t * part;
      float* y[kTokens];
      for (size_t i = 0; i < tokens; ++i) y[i] = &y_[(t * kTokens + i) * kRowsAtOnce];
      for (size_t row = 0; row < rows; row += kRowsAtOnce) {
        const size_t count = std::min(kRowsAtOnce, rows - row);
        kernel_.mat_mul(w + row * row_bytes_, count, kColumns, pointers_, tokens, y);
      }
    });
    return {static_cast<double>(rows * row_bytes_) * threads_, best};
  }

  size_t row_bytes() const { return row_bytes_; }

  static constexpr size_t kColumns = 6144;
  static constexpr size_t kFew = 8, kTokens = 32;  // two points of a long ubatch's line

 private:
  static constexpr size_t kRowsAtOnce = 64;
  struct Free {
    void operator()(std::byte* memory) const { std::free(memory); }
  };
  const size_t row_bytes_;
  const WeightKernel& kernel_;
  const int threads_;
  const std::byte* const data_;
  std::unique_ptr<std::byte, Free> activations_;
  const void* pointers_[kTokens];
  std::vector<float> y_;
};

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
  const uint64_t wanted = std::max(options.dram_bytes, kTimesCache * largest_cache_bytes);
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

std::vector<WeightRate> MeasureWeightRates(int threads, uint64_t usable_bytes,
                                           uint64_t largest_cache_bytes, const CpuKernels& kernels,
                                           const MeasureOptions& options) {
  const std::optional<WeightMemory> memory =
      WeightMemory::Make(usable_bytes, largest_cache_bytes, threads, options);
  if (threads < 1 || !memory) return {};
  const size_t part = memory->bytes() / static_cast<size_t>(threads) / 4096 * 4096;
  std::vector<WeightRate> rates;
  for (const TensorType type : kMeasuredTypes) {
    WeightPasses passes(type, *kernels.weight(type), threads, memory->data());
    WeightRate rate;
    rate.type = std::string(TypeName(type));
    const auto [read, seconds] = passes.Run(part, 1, options.seconds_each / 2);
    rate.read_gb_per_s = read / seconds / 1e9;
    const size_t share = std::min<size_t>(part, 1024 * passes.row_bytes());
    const auto [same, low] = passes.Run(share, WeightPasses::kFew, options.seconds_each / 2);
    const double high = passes.Run(share, WeightPasses::kTokens, options.seconds_each / 2).second;
    const double per_token = (high - low) / (WeightPasses::kTokens - WeightPasses::kFew);
    const double pass = low - WeightPasses::kFew * per_token;
    const double weights = same / static_cast<double>(passes.row_bytes()) * WeightPasses::kColumns;
    if (per_token > 0) rate.tflops = 2 * weights / per_token / 1e12;
    if (pass > 0) rate.pass_gb_per_s = same / pass / 1e9;
    rates.push_back(std::move(rate));
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

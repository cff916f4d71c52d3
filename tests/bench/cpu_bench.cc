#include "tests/bench/cpu_bench.h"

#include <sched.h>
#include <sys/mman.h>

#include <algorithm>
#include <barrier>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <fstream>
#include <random>
#include <sstream>
#include <thread>

namespace packtrain {
namespace {

// Where the f16 scales of a block lie; random bytes there would be infinite or NaN now and then.
std::vector<size_t> HalfOffsets(TensorType type) {
  using enum TensorType;
  switch (type) {
    case kQ2_K:
      return {80, 82};
    case kQ3_K:
      return {108};
    case kQ6_K:
      return {208};
    case kQ4_K:
    case kQ5_K:
    case kQ4_1:
    case kQ5_1:
      return {0, 2};
    case kF16:
    case kIQ1_M:
    case kMXFP4:
    case kF32:
    case kBF16:
      return {};
    default:
      return {0};
  }
}

double ThreadSeconds() {
  timespec now;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

void PinTo(int cpu) {
  cpu_set_t mine;
  CPU_ZERO(&mine);
  CPU_SET(static_cast<size_t>(cpu), &mine);
  sched_setaffinity(0, sizeof mine, &mine);
}

int FirstSibling(int cpu) {
  std::ifstream file("/sys/devices/system/cpu/cpu" + std::to_string(cpu) +
                     "/topology/thread_siblings_list");
  int first = cpu;
  file >> first;
  return first;
}

}  // namespace

Buffer Allocate(size_t bytes) {
  // Without a reservation: the kernel would refuse one of more memory than it has now, and a
  // virtual machine's memory may grow only as it is used.
  void* const at = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (at == MAP_FAILED) {
    std::fprintf(stderr, "cannot map %.1f GiB of memory: %s\n",
                 static_cast<double>(bytes) / (1 << 30), std::strerror(errno));
    std::exit(1);
  }
  madvise(at, bytes, MADV_HUGEPAGE);
  return Buffer(at, Unmap{bytes});
}

std::vector<std::string> Split(const std::string& list) {
  std::vector<std::string> items;
  std::stringstream stream(list);
  for (std::string item; std::getline(stream, item, ',');) items.push_back(item);
  return items;
}

const TypeTraits* TypeByName(const std::string& name) {
  for (const TypeTraits& traits : AllTypes()) {
    if (traits.name == name) return &traits;
  }
  return nullptr;
}

void FillBlocks(const TypeTraits& traits, uint8_t* data, size_t bytes) {
  std::mt19937_64 random(1);
  const size_t count = std::min<size_t>(bytes, 8 << 20) / traits.block_bytes;
  const std::vector<size_t> halves = HalfOffsets(traits.type);
  uint8_t* block = data;
  for (size_t i = 0; i < count; ++i, block += traits.block_bytes) {
    for (size_t j = 0; j < traits.block_bytes; ++j) block[j] = static_cast<uint8_t>(random());
    for (size_t offset : halves) block[offset + 1] = (block[offset + 1] & 0x83) | 0x20;
    using enum TensorType;
    if (traits.type == kIQ1_M) block[55] = (block[55] & 0x0f) | 0x20;
    if (traits.type == kMXFP4) block[0] = static_cast<uint8_t>(110 + block[0] % 16);
    if (traits.type == kF16) block[1] = (block[1] & 0x83) | 0x20;
    if (traits.type == kBF16) block[1] = (block[1] & 0x80) | 0x3c;
    if (traits.type == kF32) block[3] = (block[3] & 0x80) | 0x3c;
  }
  // Over the threads, as first touching the pages takes longest.
  const size_t filled = count * traits.block_bytes;
  const size_t copies = (bytes + filled - 1) / filled;
  const int threads = static_cast<int>(CpuOrder().size());
  std::vector<std::thread> pool;
  for (int t = 0; t < threads; ++t) {
    pool.emplace_back([=] {
      const Range part = Part(copies - 1, t, threads);
      for (size_t i = part.first + 1; i <= part.last; ++i) {
        std::memcpy(data + i * filled, data, std::min(filled, bytes - i * filled));
      }
    });
  }
  for (std::thread& thread : pool) thread.join();
}

std::vector<int> CpuOrder() {
  cpu_set_t allowed;
  sched_getaffinity(0, sizeof allowed, &allowed);
  std::vector<int> first, later, seen;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (!CPU_ISSET(static_cast<size_t>(cpu), &allowed)) continue;
    const int core = FirstSibling(cpu);
    const bool is_first = std::find(seen.begin(), seen.end(), core) == seen.end();
    (is_first ? first : later).push_back(cpu);
    seen.push_back(core);
  }
  first.insert(first.end(), later.begin(), later.end());
  return first;
}

Pinned::Pinned(int cpu) {
  sched_getaffinity(0, sizeof before_, &before_);
  PinTo(cpu);
}

Pinned::~Pinned() { sched_setaffinity(0, sizeof before_, &before_); }

std::vector<std::vector<double>> TimeEachThread(int threads, int reps,
                                                const std::function<void(int)>& work) {
  const std::vector<int> cpus = CpuOrder();
  std::barrier sync(threads);
  std::vector<std::vector<double>> spent(static_cast<size_t>(threads));
  std::vector<std::thread> pool;
  for (int t = 0; t < threads; ++t) {
    pool.emplace_back([&, t] {
      PinTo(cpus[static_cast<size_t>(t) % cpus.size()]);
      work(t);
      for (int r = 0; r < reps; ++r) {
        sync.arrive_and_wait();
        const double start = ThreadSeconds();
        work(t);
        spent[static_cast<size_t>(t)].push_back(ThreadSeconds() - start);
      }
    });
  }
  for (std::thread& thread : pool) thread.join();
  return spent;
}

std::vector<double> TimeThreads(int threads, int reps, const std::function<void(int)>& work) {
  std::vector<double> seconds(static_cast<size_t>(reps));
  for (const std::vector<double>& thread : TimeEachThread(threads, reps, work)) {
    for (size_t r = 0; r < seconds.size(); ++r) seconds[r] = std::max(seconds[r], thread[r]);
  }
  std::sort(seconds.begin(), seconds.end());
  return seconds;
}

double Median(const std::vector<double>& sorted) { return sorted[sorted.size() / 2]; }

Range Part(size_t count, int part, int parts) {
  return {count * static_cast<size_t>(part) / static_cast<size_t>(parts),
          count * static_cast<size_t>(part + 1) / static_cast<size_t>(parts)};
}

double ReadBandwidth(const uint8_t* data, size_t bytes, int threads, int reps) {
  std::vector<uint64_t> sums(static_cast<size_t>(threads) * 8);
  const auto seconds = TimeThreads(threads, reps, [&](int t) {
    const Range lines = Part(bytes / 64, t, threads);
    // One word of each line: what counts is that the line comes.
    uint64_t sum = 0;
    for (size_t i = lines.first; i < lines.last; ++i) {
      uint64_t word;
      std::memcpy(&word, data + 64 * i, sizeof word);
      sum += word;
    }
    sums[static_cast<size_t>(t) * 8] += sum;
  });
  if (sums[0] == 1) std::puts("");  // keeps the sums
  return static_cast<double>(bytes / 64 * 64) / Median(seconds);
}

RandomActivations::RandomActivations(const WeightKernel& kernel, size_t n, size_t tokens)
    : x_(n * tokens) {
  std::mt19937 random(3);
  std::normal_distribution<float> normal;
  for (float& x : x_) x = normal(random);
  // One behind the other, as a stage has them: rows that each begin a page share a cache's sets.
  const size_t row_bytes = kernel.activation_bytes(n);
  prepared_ = Allocate(tokens * row_bytes);
  for (size_t t = 0; t < tokens; ++t) {
    std::byte* row = static_cast<std::byte*>(prepared_.get()) + t * row_bytes;
    kernel.prepare(x_.data() + t * n, n, row);
    pointers_.push_back(row);
  }
}

void Multiply(const WeightKernel& kernel, const uint8_t* w, size_t row_bytes, Range rows, size_t n,
              const RandomActivations& activations, size_t tokens, std::vector<float>* out) {
  constexpr size_t kRowsPerCall = 64;
  out->resize(tokens * kRowsPerCall);
  std::vector<float*> y(tokens);
  for (size_t t = 0; t < tokens; ++t) y[t] = out->data() + t * kRowsPerCall;
  for (size_t r = rows.first; r < rows.last; r += kRowsPerCall) {
    kernel.mat_mul(w + r * row_bytes, std::min(kRowsPerCall, rows.last - r), n,
                   activations.pointers(), tokens, y.data());
  }
}

double CachedRate(const WeightKernel& kernel, const uint8_t* w, size_t row_bytes, size_t rows,
                  size_t n, size_t tokens, int threads, int reps) {
  const size_t each =
      std::clamp<size_t>((200 << 10) / row_bytes, 1, rows / static_cast<size_t>(threads));
  const size_t repeats = std::max<size_t>(1, (16 << 20) / (each * row_bytes));
  const RandomActivations activations(kernel, n, tokens);
  std::vector<std::vector<float>> out(static_cast<size_t>(threads));
  double rate = 0;
  for (std::vector<double>& seconds : TimeEachThread(threads, reps, [&](int t) {
         const size_t first = static_cast<size_t>(t) * each;
         for (size_t i = 0; i < repeats; ++i) {
           Multiply(kernel, w, row_bytes, {first, first + each}, n, activations, tokens,
                    &out[static_cast<size_t>(t)]);
         }
       })) {
    std::sort(seconds.begin(), seconds.end());
    rate += static_cast<double>(repeats * each * row_bytes) / Median(seconds);
  }
  return rate;
}

}  // namespace packtrain

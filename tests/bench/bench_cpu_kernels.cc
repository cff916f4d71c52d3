// Matrix products of the CPU kernels: per type and instruction set GB/s of weights from memory, the
// same from L2 (the bound by instructions), the machine's read bandwidth in the same run, and the
// share of the smaller of the two. Results are checked against the reference decoder first.
//
//   bench_cpu_kernels [--isa=avx512,avx2] [--types=IQ2_XS,...] [--threads=1,2] [--tokens=1,2,4,8]
//                     [--shapes=6144x2048,...] [--cold_mb=N] [--reps=9] [--json=FILE]
//
// Shapes are n x rows: GLM-5.2's experts are 6144x2048 (gate, up) and 2048x6144 (down),
// Qwen3.6-35B-A3B's 2048x512 and 512x2048.

#include <sched.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <barrier>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <fstream>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "common/quant/codec.h"
#include "worker/kernels/cpu/isa.h"
#include "worker/kernels/cpu/kernels.h"

namespace packtrain {
namespace {

struct Options {
  std::vector<std::string> isas = {"avx512", "avx2"};
  std::vector<std::string> types = {"IQ2_XXS", "IQ2_XS", "IQ2_S",  "IQ3_XXS", "IQ3_S",
                                    "IQ1_S",   "IQ1_M",  "IQ4_XS", "IQ4_NL",  "Q2_K",
                                    "Q3_K",    "Q4_K",   "Q5_K",   "Q6_K",    "Q8_0",
                                    "Q4_0",    "MXFP4",  "F16",    "BF16",    "F32"};
  std::vector<std::string> shapes = {"6144x2048", "2048x6144", "2048x512", "512x2048"};
  std::vector<std::string> threads = {"1"};
  std::vector<std::string> tokens = {"1"};
  size_t cold_mb = 0;  // 0: four times the last-level cache
  int reps = 9;
  std::string json;
};

struct FreeDeleter {
  void operator()(void* p) const { std::free(p); }
};
using Buffer = std::unique_ptr<void, FreeDeleter>;

// In huge pages where the kernel gives them, as weights in memory are.
Buffer Allocate(size_t bytes) {
  constexpr size_t kPage = 2 << 20;
  const size_t size = (bytes + kPage - 1) / kPage * kPage;
  Buffer buffer(std::aligned_alloc(kPage, size));
  madvise(buffer.get(), size, MADV_HUGEPAGE);
  return buffer;
}

std::vector<std::string> Split(const std::string& list) {
  std::vector<std::string> items;
  std::stringstream stream(list);
  for (std::string item; std::getline(stream, item, ',');) items.push_back(item);
  return items;
}

bool ParseOptions(int argc, char** argv, Options* options) {
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    const size_t equals = argument.find('=');
    const std::string name = argument.substr(0, equals);
    const std::string value = equals == std::string::npos ? "" : argument.substr(equals + 1);
    if (name == "--isa") {
      options->isas = Split(value);
    } else if (name == "--types") {
      options->types = Split(value);
    } else if (name == "--shapes") {
      options->shapes = Split(value);
    } else if (name == "--threads") {
      options->threads = Split(value);
    } else if (name == "--tokens") {
      options->tokens = Split(value);
    } else if (name == "--cold_mb") {
      options->cold_mb = std::stoul(value);
    } else if (name == "--reps") {
      options->reps = std::stoi(value);
    } else if (name == "--json") {
      options->json = value;
    } else {
      std::fprintf(stderr, "unknown argument %s\n", argument.c_str());
      return false;
    }
  }
  return true;
}

const TypeTraits* TypeByName(const std::string& name) {
  for (const TypeTraits& traits : AllTypes()) {
    if (traits.name == name) return &traits;
  }
  return nullptr;
}

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

// Random blocks with small finite scales.
void FillBlocks(const TypeTraits& traits, uint8_t* blocks, size_t count, std::mt19937_64* random) {
  const std::vector<size_t> halves = HalfOffsets(traits.type);
  for (size_t i = 0; i < count; ++i, blocks += traits.block_bytes) {
    for (size_t j = 0; j < traits.block_bytes; ++j) blocks[j] = static_cast<uint8_t>((*random)());
    for (size_t offset : halves) blocks[offset + 1] = (blocks[offset + 1] & 0x83) | 0x20;
    using enum TensorType;
    if (traits.type == kIQ1_M) blocks[55] = (blocks[55] & 0x0f) | 0x20;
    if (traits.type == kMXFP4) blocks[0] = static_cast<uint8_t>(110 + blocks[0] % 16);
    if (traits.type == kF16) blocks[1] = (blocks[1] & 0x83) | 0x20;
    if (traits.type == kBF16) blocks[1] = (blocks[1] & 0x80) | 0x3c;
    if (traits.type == kF32) blocks[3] = (blocks[3] & 0x80) | 0x3c;
  }
}

double ThreadSeconds() {
  timespec now;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

void PinToNthCpu(int n) {
  cpu_set_t allowed, mine;
  sched_getaffinity(0, sizeof allowed, &allowed);
  CPU_ZERO(&mine);
  for (int cpu = 0, nth = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (CPU_ISSET(cpu, &allowed) && nth++ == n) CPU_SET(cpu, &mine);
  }
  if (CPU_COUNT(&mine) > 0) sched_setaffinity(0, sizeof mine, &mine);
}

// Runs `work(thread)` on all threads at once; returns the seconds of each repetition, sorted. The
// time is the slowest thread's own: on a machine of one's own that is the wall clock's, on a shared
// one it leaves out when others ran.
std::vector<double> TimeThreads(int threads, int reps, const std::function<void(int)>& work) {
  std::barrier sync(threads);
  std::vector<std::vector<double>> spent(static_cast<size_t>(threads));
  std::vector<std::thread> pool;
  for (int t = 0; t < threads; ++t) {
    pool.emplace_back([&, t] {
      PinToNthCpu(t);
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
  std::vector<double> seconds(static_cast<size_t>(reps));
  for (size_t r = 0; r < seconds.size(); ++r) {
    for (const std::vector<double>& thread : spent) seconds[r] = std::max(seconds[r], thread[r]);
  }
  std::sort(seconds.begin(), seconds.end());
  return seconds;
}

double Median(const std::vector<double>& sorted) { return sorted[sorted.size() / 2]; }

// Share `part` of `parts` of `count` things.
struct Range {
  size_t first, last;
};
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

struct Case {
  const TypeTraits* traits;
  const CpuKernels* kernels;
  size_t n, rows;
  size_t tokens;
};

class Activations {
 public:
  Activations(const WeightKernel& kernel, size_t n, size_t tokens) : x_(n * tokens) {
    std::mt19937 random(3);
    std::normal_distribution<float> normal;
    for (float& x : x_) x = normal(random);
    for (size_t t = 0; t < tokens; ++t) {
      prepared_.push_back(Allocate(kernel.activation_bytes(n)));
      kernel.prepare(x_.data() + t * n, n, prepared_.back().get());
      pointers_.push_back(prepared_.back().get());
    }
  }
  const void* const* pointers() const { return pointers_.data(); }
  const float* x(size_t t, size_t n) const { return x_.data() + t * n; }

 private:
  std::vector<float> x_;
  std::vector<Buffer> prepared_;
  std::vector<const void*> pointers_;
};

// Products of `rows` rows at w, 64 rows a call, into a per-thread output.
void Multiply(const WeightKernel& kernel, const uint8_t* w, size_t row_bytes, Range rows, size_t n,
              const Activations& activations, size_t tokens, std::vector<float>* out) {
  constexpr size_t kRowsPerCall = 64;
  out->resize(tokens * kRowsPerCall);
  std::vector<float*> y(tokens);
  for (size_t t = 0; t < tokens; ++t) y[t] = out->data() + t * kRowsPerCall;
  for (size_t r = rows.first; r < rows.last; r += kRowsPerCall) {
    kernel.mat_mul(w + r * row_bytes, std::min(kRowsPerCall, rows.last - r), n,
                   activations.pointers(), tokens, y.data());
  }
}

// The largest error relative to sum |w x|; activations may be rounded to 8 bits.
double CheckError(const Case& c, const uint8_t* w) {
  const WeightKernel& kernel = *c.kernels->weight(c.traits->type);
  const Activations activations(kernel, c.n, c.tokens);
  const size_t rows = std::min<size_t>(c.rows, 64);
  std::vector<float> out, row(c.n);
  Multiply(kernel, w, RowBytes(c.traits->type, c.n), {0, rows}, c.n, activations, c.tokens, &out);
  double worst = 0;
  for (size_t r = 0; r < rows; ++r) {
    Decode(c.traits->type, w + r * RowBytes(c.traits->type, c.n), c.n, row.data());
    for (size_t t = 0; t < c.tokens; ++t) {
      double dot = 0, sum = 0;
      for (size_t i = 0; i < c.n; ++i) {
        const double product = double{row[i]} * activations.x(t, c.n)[i];
        dot += product;
        sum += std::fabs(product);
      }
      const double error = std::fabs(out[t * 64 + r] - dot) / sum;
      if (!(error <= worst)) worst = error;
    }
  }
  return worst;
}

std::string CpuName() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    if (line.rfind("model name", 0) == 0) return line.substr(line.find(':') + 2);
  }
  return "unknown";
}

class Bench {
 public:
  explicit Bench(const Options& options) : options_(options) {
    size_t mb = options.cold_mb;
    if (mb == 0) {
      const long cache = sysconf(_SC_LEVEL3_CACHE_SIZE);
      mb = static_cast<size_t>(std::max(cache, 32L << 20)) * 4 >> 20;
    }
    bytes_ = mb << 20;
    weights_ = Allocate(bytes_);
  }

  int Run() {
    std::printf("cpu %s, weights %zu MB, medians of %d\n", CpuName().c_str(), bytes_ >> 20,
                options_.reps);
    for (const std::string& threads : options_.threads) {
      std::memset(weights_.get(), 1, bytes_);
      const int count = std::stoi(threads);
      bandwidth_[count] = ReadBandwidth(data(), bytes_, count, options_.reps);
      std::printf("read bandwidth, %d threads: %.1f GB/s\n", count, bandwidth_[count] / 1e9);
    }
    std::printf("%-8s %-7s %-10s %3s %3s  %8s %8s %6s %9s %8s\n", "type", "isa", "n x rows", "thr",
                "tok", "GB/s", "L2 GB/s", "share", "GMAC/s", "error");
    for (const std::string& name : options_.types) {
      const TypeTraits* traits = TypeByName(name);
      if (traits == nullptr) {
        std::fprintf(stderr, "unknown type %s\n", name.c_str());
        return 1;
      }
      Fill(*traits);
      for (const std::string& isa : options_.isas) {
        const auto kernels = SelectCpuKernels(isa);
        if (!kernels.ok()) {
          std::printf("%s\n", kernels.status().ToString().c_str());
          continue;
        }
        for (const std::string& shape : options_.shapes) {
          for (const std::string& tokens : options_.tokens) {
            Case c{traits, *kernels, std::stoul(shape),
                   std::stoul(shape.substr(shape.find('x') + 1)), std::stoul(tokens)};
            if (!Measure(c)) return 1;
          }
        }
      }
    }
    if (!options_.json.empty()) {
      std::ofstream(options_.json) << "{\"cpu\":\"" << CpuName() << "\",\"compiler\":\""
                                   << __VERSION__ << "\",\"results\":[" << json_ << "]}\n";
    }
    return 0;
  }

 private:
  uint8_t* data() { return static_cast<uint8_t*>(weights_.get()); }

  // A megablock of random weights, repeated: generating all of them would take longer than the
  // runs.
  void Fill(const TypeTraits& traits) {
    std::mt19937_64 random(1);
    const size_t blocks = std::min<size_t>(bytes_, 8 << 20) / traits.block_bytes;
    FillBlocks(traits, data(), blocks, &random);
    const size_t filled = blocks * traits.block_bytes;
    for (size_t at = filled; at < bytes_; at += filled) {
      std::memcpy(data() + at, data(), std::min(filled, bytes_ - at));
    }
  }

  bool Measure(const Case& c) {
    const double error = CheckError(c, data());
    if (!(error < 2e-2)) {
      std::fprintf(stderr, "%s %s: wrong result, relative error %g\n",
                   std::string(c.traits->name).c_str(), std::string(c.kernels->name).c_str(),
                   error);
      return false;
    }
    const WeightKernel& kernel = *c.kernels->weight(c.traits->type);
    const Activations activations(kernel, c.n, c.tokens);
    const size_t row_bytes = RowBytes(c.traits->type, c.n);
    const size_t rows = bytes_ / row_bytes / c.rows * c.rows;
    for (const std::string& option : options_.threads) {
      const int threads = std::stoi(option);
      std::vector<std::vector<float>> out(static_cast<size_t>(threads));
      // Each matrix in turn is split over the threads, as a layer's experts are.
      const double cold = Median(TimeThreads(threads, options_.reps, [&](int t) {
        for (size_t first = 0; first < rows; first += c.rows) {
          const Range part = Part(c.rows, t, threads);
          Multiply(kernel, data(), row_bytes, {first + part.first, first + part.last}, c.n,
                   activations, c.tokens, &out[static_cast<size_t>(t)]);
        }
      }));
      const size_t warm_rows =
          std::max<size_t>(1, std::min<size_t>(c.rows, (200 << 10) / row_bytes));
      const size_t repeats = std::max<size_t>(1, (16 << 20) / (warm_rows * row_bytes));
      const double warm = Median(TimeThreads(threads, options_.reps, [&](int t) {
        const size_t first = static_cast<size_t>(t) * warm_rows;
        for (size_t i = 0; i < repeats; ++i) {
          Multiply(kernel, data(), row_bytes, {first, first + warm_rows}, c.n, activations,
                   c.tokens, &out[static_cast<size_t>(t)]);
        }
      }));
      const double cold_rate = static_cast<double>(rows * row_bytes) / cold;
      const double warm_rate = static_cast<double>(threads) *
                               static_cast<double>(repeats * warm_rows * row_bytes) / warm;
      const double share = cold_rate / std::min(warm_rate, bandwidth_[threads]);
      const double macs = static_cast<double>(rows * c.n * c.tokens) / cold;
      Print(c, threads, cold_rate, warm_rate, share, macs, error);
    }
    return true;
  }

  void Print(const Case& c, int threads, double cold, double warm, double share, double macs,
             double error) {
    const std::string name(c.traits->name), isa(c.kernels->name);
    const std::string shape = std::to_string(c.n) + "x" + std::to_string(c.rows);
    std::printf("%-8s %-7s %-10s %3d %3zu  %8.2f %8.2f %5.0f%% %9.1f %8.1e\n", name.c_str(),
                isa.c_str(), shape.c_str(), threads, c.tokens, cold / 1e9, warm / 1e9, share * 100,
                macs / 1e9, error);
    std::fflush(stdout);
    char line[512];
    std::snprintf(
        line, sizeof line,
        "%s{\"type\":\"%s\",\"isa\":\"%s\",\"shape\":\"%s\",\"threads\":%d,\"tokens\":%zu,"
        "\"gb_per_s\":%.3f,\"l2_gb_per_s\":%.3f,\"read_gb_per_s\":%.3f,\"share\":%.3f}",
        json_.empty() ? "" : ",\n", name.c_str(), isa.c_str(), shape.c_str(), threads, c.tokens,
        cold / 1e9, warm / 1e9, bandwidth_[threads] / 1e9, share);
    json_ += line;
  }

  const Options options_;
  size_t bytes_ = 0;
  Buffer weights_;
  std::map<int, double> bandwidth_;
  std::string json_;
};

}  // namespace
}  // namespace packtrain

int main(int argc, char** argv) {
  packtrain::Options options;
  if (!packtrain::ParseOptions(argc, argv, &options)) return 1;
  return packtrain::Bench(options).Run();
}

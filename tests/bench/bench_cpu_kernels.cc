// Matrix products of the CPU kernels: per type and instruction set GB/s of weights from memory, the
// same from L2 (the bound by instructions), the machine's read bandwidth in the same run, and the
// share of the smaller of the two. Results are checked against the reference decoder first.
//
//   bench_cpu_kernels [--isa=avx512,avx2] [--types=IQ2_XS,...] [--threads=1,2] [--tokens=1,2,4,8]
//                     [--shapes=6144x2048,...] [--cold_mb=N] [--reps=9] [--json=FILE]
//
// Shapes are n x rows: GLM-5.2's experts are 6144x2048 (gate, up) and 2048x6144 (down),
// Qwen3.6-35B-A3B's 2048x512 and 512x2048.

#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <map>
#include <string>
#include <vector>

#include "common/quant/codec.h"
#include "tests/bench/cpu_bench.h"
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

struct Case {
  const TypeTraits* traits;
  const CpuKernels* kernels;
  size_t n, rows;
  size_t tokens;
};

// The largest error relative to sum |w x|; activations may be rounded to 8 bits.
double CheckError(const Case& c, const uint8_t* w) {
  const WeightKernel& kernel = *c.kernels->weight(c.traits->type);
  const RandomActivations activations(kernel, c.n, c.tokens);
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
      FillBlocks(*traits, data(), bytes_);
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

  bool Measure(const Case& c) {
    const double error = CheckError(c, data());
    if (!(error < 2e-2)) {
      std::fprintf(stderr, "%s %s: wrong result, relative error %g\n",
                   std::string(c.traits->name).c_str(), std::string(c.kernels->name).c_str(),
                   error);
      return false;
    }
    const WeightKernel& kernel = *c.kernels->weight(c.traits->type);
    const RandomActivations activations(kernel, c.n, c.tokens);
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
      const double warm_rate =
          CachedRate(kernel, data(), row_bytes, rows, c.n, c.tokens, threads, options_.reps);
      const double cold_rate = static_cast<double>(rows * row_bytes) / cold;
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

#pragma once

// A small test harness for machines with a GPU and a compiler but none of the project's libraries:
// cases that register themselves, checks that count, device buffers that come poisoned.

#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "common/quant/codec.h"

namespace packtrain::gputest {

struct Case {
  std::string name;
  std::function<void()> run;
};
inline std::vector<Case>& Cases() {
  static std::vector<Case> cases;
  return cases;
}
struct Register {
  Register(std::string name, std::function<void()> run) {
    Cases().push_back({std::move(name), std::move(run)});
  }
};

struct Outcome {
  long checks = 0;
  long failures = 0;
  double worst = 0;  // largest error as a share of its tolerance
};
inline Outcome& Current() {
  static Outcome outcome;
  return outcome;
}

#define GPU_TEST(name)                                                   \
  static void name();                                                    \
  static ::packtrain::gputest::Register name##_registered(#name, &name); \
  static void name()

inline void Expect(bool ok, const std::string& what) {
  ++Current().checks;
  if (ok) return;
  if (++Current().failures <= 5) std::printf("    FAILED %s\n", what.c_str());
}

inline std::vector<uint16_t> ToBf16(const std::vector<float>& x) {
  std::vector<uint16_t> out(x.size());
  for (size_t i = 0; i < x.size(); ++i) out[i] = FloatToBFloat16(x[i]);
  return out;
}

// NaN on either side fails.
inline void ExpectNear(double value, double reference, double tolerance, const std::string& what) {
  double error = std::abs(value - reference);
  if (error <= tolerance && tolerance > 0)
    Current().worst = std::max(Current().worst, error / tolerance);
  ++Current().checks;
  if (error <= tolerance) return;
  if (++Current().failures <= 5) {
    std::printf("    FAILED %s: %.9g, reference %.9g, tolerance %.3g\n", what.c_str(), value,
                reference, tolerance);
  }
}

// CUDA's and the launchers' codes: anything but success ends the program, nothing later can be
// trusted.
inline void Check(int code, const char* what) {
  if (code == 0) return;
  std::printf("%s: %s\n", what, cudaGetErrorString(static_cast<cudaError_t>(code)));
  std::exit(2);
}
#define CUDA_OK(call) ::packtrain::gputest::Check(static_cast<int>(call), #call)

// Device memory of exactly n elements (and the slack that weights need), filled with 0xFF: NaN as
// f32, -1 as integers.
template <class T>
class Device {
 public:
  explicit Device(size_t n) : n_(n) {
    CUDA_OK(cudaMalloc(&data_, n * sizeof(T) + 16));
    Poison();
  }
  explicit Device(const std::vector<T>& values) : Device(values.size()) { Set(values); }
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;
  ~Device() { cudaFree(data_); }

  void Poison() { CUDA_OK(cudaMemset(data_, 0xFF, n_ * sizeof(T) + 16)); }
  void Set(const std::vector<T>& values) {
    CUDA_OK(cudaMemcpy(data_, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice));
  }
  std::vector<T> Get() const {
    std::vector<T> values(n_);
    CUDA_OK(cudaDeviceSynchronize());
    CUDA_OK(cudaMemcpy(values.data(), data_, n_ * sizeof(T), cudaMemcpyDeviceToHost));
    return values;
  }
  T* get() const { return data_; }
  size_t size() const { return n_; }

 private:
  size_t n_;
  T* data_ = nullptr;
};

class Random {
 public:
  explicit Random(uint64_t seed) : engine_(seed) {}
  uint32_t Bits() { return static_cast<uint32_t>(engine_()); }
  int Below(int n) { return static_cast<int>(engine_() % static_cast<uint64_t>(n)); }
  float Normal(float scale = 1) { return static_cast<float>(normal_(engine_)) * scale; }
  std::vector<float> Normals(size_t n, float scale = 1) {
    std::vector<float> values(n);
    for (float& v : values) v = Normal(scale);
    return values;
  }
  std::vector<uint8_t> Bytes(size_t n) {
    std::vector<uint8_t> values(n);
    for (uint8_t& v : values) v = static_cast<uint8_t>(engine_());
    return values;
  }

 private:
  std::mt19937_64 engine_;
  std::normal_distribution<double> normal_;
};

template <class T>
bool SameBits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}

// Random blocks of a weight type whose scales are finite and of ordinary size.
std::vector<uint8_t> RandomBlocks(Random* random, int type_id, size_t blocks);

}  // namespace packtrain::gputest

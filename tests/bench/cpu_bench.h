#pragma once

// What the benchmarks of CPU kernels share: random weights, threads on CPUs of their own, the
// machine's read bandwidth and the rate of a kernel on weights that stay in the cache.

#include <sched.h>
#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "common/quant/type.h"
#include "worker/kernels/cpu/weight_kernel.h"

namespace packtrain {

struct Unmap {
  size_t bytes = 0;
  void operator()(void* p) const { munmap(p, bytes); }
};
using Buffer = std::unique_ptr<void, Unmap>;

// In huge pages where the kernel gives them; ends the process if the memory cannot be had.
Buffer Allocate(size_t bytes);

std::vector<std::string> Split(const std::string& list);

// nullptr: unknown.
const TypeTraits* TypeByName(const std::string& name);

// Random blocks with small finite scales: 8 MB of them, repeated, since generating all of them
// would take longer than the runs.
void FillBlocks(const TypeTraits& traits, uint8_t* data, size_t bytes);

// The CPUs that this process may use, one of each core before the cores' others.
std::vector<int> CpuOrder();

// Keeps the calling thread on `cpu` as long as it lives.
class Pinned {
 public:
  explicit Pinned(int cpu);
  ~Pinned();
  Pinned(const Pinned&) = delete;
  Pinned& operator=(const Pinned&) = delete;

 private:
  cpu_set_t before_;
};

// Runs `work(thread)` on all threads at once, each on a CPU of its own in CpuOrder, once untimed;
// returns the seconds of each repetition, sorted. The time is the slowest thread's own: on a
// machine of one's own that is the wall clock's, on a shared one it leaves out when others ran.
std::vector<double> TimeThreads(int threads, int reps, const std::function<void(int)>& work);

double Median(const std::vector<double>& sorted);

// Share `part` of `parts` of `count` things.
struct Range {
  size_t first, last;
};
Range Part(size_t count, int part, int parts);

// Bytes/s.
double ReadBandwidth(const uint8_t* data, size_t bytes, int threads, int reps);

// Random activation rows of n values, prepared for a kernel.
class RandomActivations {
 public:
  RandomActivations(const WeightKernel& kernel, size_t n, size_t tokens);
  const void* const* pointers() const { return pointers_.data(); }
  const float* x(size_t t, size_t n) const { return x_.data() + t * n; }

 private:
  std::vector<float> x_;
  Buffer prepared_;
  std::vector<const void*> pointers_;
};

// Products of `rows` rows at w, 64 rows a call, into `out` [tokens, 64].
void Multiply(const WeightKernel& kernel, const uint8_t* w, size_t row_bytes, Range rows, size_t n,
              const RandomActivations& activations, size_t tokens, std::vector<float>* out);

// Bytes of weights/s over all threads when each thread's rows, of the `rows` at w, stay in its
// second-level cache: the bound by instructions. The sum of each thread's own rate: where some CPUs
// are slower (they share a core with somebody), tasks go to the others.
double CachedRate(const WeightKernel& kernel, const uint8_t* w, size_t row_bytes, size_t rows,
                  size_t n, size_t tokens, int threads, int reps);

}  // namespace packtrain

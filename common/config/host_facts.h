#pragma once

// What is known of one host: its processor, memory, storage and GPUs, found and measured by
// `packtrain-worker --probe`, judged by `packtrain doctor`, and planned with. Plain values; a field
// that is 0 or empty is not known.

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace packtrain {

// No limit, where a limit in bytes is meant.
inline constexpr uint64_t kUnlimited = ~uint64_t{0};

struct CacheFacts {
  int level = 0;
  uint64_t bytes = 0;
  int cores = 0;  // that share it
};

struct NumaFacts {
  int node = 0;
  int cores = 0;
  uint64_t memory_bytes = 0;
};

struct CpuFacts {
  std::string model;
  std::string isa;       // best kernel bundle, as PACKTRAIN_ISA names it
  int cores = 0;         // physical, that this process may use
  int threads = 0;       // logical, that this process may use
  double cpu_limit = 0;  // cores granted by the cgroup, 0: no limit
  std::vector<CacheFacts> caches;
  std::vector<NumaFacts> numa;
};

struct MemoryFacts {
  uint64_t total_bytes = 0;
  uint64_t available_bytes = 0;
  uint64_t cgroup_bytes = kUnlimited;  // the tightest memory.max above this process
  uint64_t cgroup_used_bytes = 0;
  uint64_t locked_bytes = kUnlimited;  // RLIMIT_MEMLOCK
  uint64_t huge_page_bytes = 0;        // of the default reserved size
  uint64_t huge_pages = 0;             // reserved
  uint64_t huge_pages_free = 0;
  std::string private_huge_pages;  // transparent: "always", "madvise", "never"
  // Of shared memory: also "within_size", "advise", ...; "on request": never by themselves.
  std::string shared_huge_pages;
  uint64_t shared_memory_bytes = 0;  // size of /dev/shm
  int module_speed = 0;              // MT/s the modules run at; needs root to read
  int module_speed_max = 0;          // MT/s they are made for
  int modules = 0;

  // What this process may still allocate.
  uint64_t usable_bytes() const;
};

struct ReadRate {
  int threads = 0;
  double gb_per_s = 0;
};

struct StorageFacts {
  std::string path;  // as asked
  std::string file;  // that was read; empty: none found, nothing measured
  double read_gb_per_s = 0;
  bool rotational = false;
};

// What a device's own kernels reach with weights of one type.
struct WeightRate {
  std::string type;          // "IQ2_XS"
  double read_gb_per_s = 0;  // of weights from memory, for one token
  // A long ubatch costs weights / pass + 2 * weights * tokens / flops.
  double pass_gb_per_s = 0;  // 0: nothing that could be measured
  double tflops = 0;
  // Of the experts that one token picks; on a CPU besides experts_layer_us for each layer, on a GPU
  // besides product_us for each kernel, and their down matrices have a rate of their own.
  double experts_gb_per_s = 0;
  double experts_down_gb_per_s = 0;
  // GPU: experts in a long ubatch, each with its own tokens. As pass and tflops above.
  double experts_pass_gb_per_s = 0;
  double experts_tflops = 0;
};

struct GpuFacts {
  int index = 0;  // of "cuda:N"; -1 for a card seen on the bus without a usable driver
  std::string name;
  std::string pci;  // "0000:01:00.0"
  uint64_t memory_bytes = 0;
  uint64_t free_bytes = 0;
  double link_gt_per_s = 0;      // per lane, now
  double link_gt_per_s_max = 0;  // that card and slot could do
  int link_lanes = 0;
  int link_lanes_max = 0;
  int numa_node = -1;
  double read_gb_per_s = 0;       // of its own memory
  double bf16_tflops = 0;         // of our matrix product
  double to_device_gb_per_s = 0;  // pinned copies
  double from_device_gb_per_s = 0;
  double flag_round_trip_us = 0;  // host, kernel, host through mapped memory
  std::vector<int> peers;         // indices of GPUs it can reach directly
  int compute_capability = 0;     // 90: 9.0
  int multiprocessors = 0;
  double product_us = 0;  // of a small product in a graph, besides reading its weights
  std::vector<WeightRate> weight_rates;
};

struct HostFacts {
  std::string name;
  std::string kernel;
  CpuFacts cpu;
  MemoryFacts memory;
  std::vector<ReadRate> dram_read;   // by number of threads, rising
  double experts_read_gb_per_s = 0;  // of expert weights by the kernels; unknown: 85 % of the best
  std::vector<WeightRate> weight_rates;  // of all cores together
  double experts_layer_us = 0;           // of one token's experts of a layer, besides their bytes
  int experts_threads = 0;               // that experts were measured with; 0: all cores
  double thread_round_trip_us = 0;       // a flag between two spinning threads on two cores
  double process_round_trip_us = 0;      // between two processes through shared memory
  std::vector<StorageFacts> storage;
  std::vector<GpuFacts> gpus;
  std::string gpu_note;  // why GPUs could not be asked, empty if they could

  // The best rate up to `threads` (0: any number of) threads, 0 if nothing was measured.
  double DramRead(int threads) const;
};

// JSON as `packtrain-worker --probe` prints it and the facts cache keeps it: the names of the
// fields above, nested the same way.
std::string HostFactsToJson(const HostFacts& facts);

// Errors: INVALID_ARGUMENT naming the key and what was expected. Absent keys stay unknown, foreign
// ones are refused.
absl::StatusOr<HostFacts> HostFactsFromJson(std::string_view json);

}  // namespace packtrain

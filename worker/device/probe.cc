#include "worker/device/probe.h"

#include <sys/utsname.h>

#include <algorithm>
#include <cmath>

#include "worker/device/host_facts_reader.h"
#include "worker/device/measure.h"

namespace packtrain {
namespace {

std::string BestIsa() {
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni")) {
    return "avx512";
  }
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? "avx2" : "scalar";
}

}  // namespace

HostFacts ProbeHost(const ProbeOptions& options) {
  HostFacts facts;
  utsname system{};
  if (uname(&system) == 0) {
    facts.name = system.nodename;
    facts.kernel = system.release;
  }
  facts.cpu = ReadCpuFacts();
  facts.cpu.isa = BestIsa();
  facts.memory = ReadMemoryFacts("");
  facts.gpus = ReadPciGpus("");
  if (!options.measure) return facts;

  int threads = facts.cpu.cores;
  if (facts.cpu.cpu_limit > 0) {
    threads = std::clamp(static_cast<int>(std::ceil(facts.cpu.cpu_limit)), 1, threads);
  }
  uint64_t cache_bytes = 0;
  for (const CacheFacts& cache : facts.cpu.caches) {
    cache_bytes = std::max(cache_bytes, cache.bytes);
  }
  const MeasureOptions measure;
  facts.dram_read = MeasureDramRead(threads, facts.memory.usable_bytes(), cache_bytes, measure);
  facts.thread_round_trip_us = MeasureThreadRoundTrip(measure);
  facts.process_round_trip_us = MeasureProcessRoundTrip(measure);
  for (const std::string& path : options.storage) {
    facts.storage.push_back(MeasureStorageRead(path, measure));
  }
  return facts;
}

}  // namespace packtrain

#include "worker/device/probe.h"

#include <sys/mman.h>
#include <sys/utsname.h>

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "common/base/huge_pages.h"
#include "worker/device/cuda_plugin.h"
#include "worker/device/host_facts_reader.h"
#include "worker/device/measure.h"
#include "worker/device/measure_experts.h"
#include "worker/kernels/cpu/kernels.h"

namespace packtrain {
namespace {

// What the bus tells of a card that the driver told the rest of.
void TakeLink(const GpuFacts& card, GpuFacts* gpu) {
  gpu->link_gt_per_s = card.link_gt_per_s;
  gpu->link_gt_per_s_max = card.link_gt_per_s_max;
  gpu->link_lanes = card.link_lanes;
  gpu->link_lanes_max = card.link_lanes_max;
  gpu->numa_node = card.numa_node;
}

// What driver and bus tell, as one list.
void ListCards(HostFacts* facts) {
  const absl::StatusOr<const CudaPlugin*> plugin = LoadCudaPlugin();
  absl::StatusOr<std::vector<GpuFacts>> gpus = plugin.ok() ? (*plugin)->probe() : plugin.status();
  std::vector<GpuFacts> cards = ReadPciGpus("");
  if (!gpus.ok()) {
    if (!cards.empty()) facts->gpu_note = std::string(gpus.status().message());
    facts->gpus = std::move(cards);
    return;
  }
  facts->gpus = *std::move(gpus);
  for (GpuFacts& card : cards) {
    const auto known = std::find_if(facts->gpus.begin(), facts->gpus.end(),
                                    [&](const GpuFacts& gpu) { return gpu.pci == card.pci; });
    if (known == facts->gpus.end()) {
      facts->gpus.push_back(std::move(card));
    } else {
      TakeLink(card, &*known);
    }
  }
}

// What the setting says; where that is "never" the kernel may still make them when asked to.
std::string SharedHugePages(const std::string& setting) {
  if (setting != "never") return setting;
  void* const memory = MapShared(-1, kHugePageBytes, PROT_READ | PROT_WRITE);
  if (memory == MAP_FAILED) return setting;
  const size_t huge = TakeHugePages(static_cast<std::byte*>(memory), kHugePageBytes, 1);
  munmap(memory, kHugePageBytes);
  return huge > 0 ? "on request" : setting;
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
  // Without a wish there is always one.
  const CpuKernels& kernels = **SelectCpuKernels("");
  facts.cpu.isa = std::string(kernels.name);
  facts.memory = ReadMemoryFacts("");
  facts.memory.shared_huge_pages = SharedHugePages(facts.memory.shared_huge_pages);
  ListCards(&facts);
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
  facts.weight_rates =
      MeasureWeightRates(threads, facts.memory.usable_bytes(), cache_bytes, kernels, measure);
  // As many as a worker of experts gets beside the stages that it works for: where none is left to
  // the rest of the machine, all wait at each barrier for the one that it interrupts.
  const int cards = static_cast<int>(std::count_if(
      facts.gpus.begin(), facts.gpus.end(), [](const GpuFacts& gpu) { return gpu.index >= 0; }));
  MeasureExperts(std::clamp(facts.cpu.threads - cards, 1, threads), facts.memory.usable_bytes(),
                 cache_bytes, kernels, measure, &facts);
  facts.thread_round_trip_us = MeasureThreadRoundTrip(measure);
  facts.process_round_trip_us = MeasureProcessRoundTrip(measure);
  for (const std::string& path : options.storage) {
    facts.storage.push_back(MeasureStorageRead(path, measure));
  }
  return facts;
}

HostFacts ProbeCard(int device) {
  HostFacts facts;
  const absl::StatusOr<const CudaPlugin*> plugin = LoadCudaPlugin();
  absl::StatusOr<GpuFacts> gpu = plugin.ok() ? (*plugin)->measure(device) : plugin.status();
  if (!gpu.ok()) {
    facts.gpu_note = std::string(gpu.status().message());
    return facts;
  }
  // Idle cards lower the speed of their links: asked now, it has just been busy.
  for (const GpuFacts& card : ReadPciGpus("")) {
    if (card.pci == gpu->pci) TakeLink(card, &*gpu);
  }
  facts.gpus.push_back(*std::move(gpu));
  return facts;
}

}  // namespace packtrain

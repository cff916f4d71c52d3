#include "coordinator/cli/doctor_findings.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"

namespace packtrain {
namespace {

double Gib(uint64_t bytes) { return static_cast<double>(bytes) / (1 << 30); }

void JudgeGpus(const HostFacts& facts, std::vector<Finding>* out) {
  for (const GpuFacts& gpu : facts.gpus) {
    const std::string name =
        gpu.index >= 0 ? absl::StrCat("cuda:", gpu.index) : absl::StrCat("the card at ", gpu.pci);
    if (gpu.link_lanes == 1) {
      out->push_back({absl::StrFormat("%s runs at x1 (it could do x%d)", name, gpu.link_lanes_max),
                      "keep it for the sidecar or a fully resident stage; a slot with more lanes "
                      "would help prefill"});
    } else if (gpu.link_lanes > 0 && gpu.link_lanes < gpu.link_lanes_max) {
      out->push_back(
          {absl::StrFormat("%s runs at x%d of x%d", name, gpu.link_lanes, gpu.link_lanes_max),
           "prefill streams experts over this link: give the card with most layers the "
           "widest slot"});
    }
    // What the link's lanes allow, less encoding and packets.
    const double allowed = gpu.link_lanes * gpu.link_gt_per_s_max / 8 * 0.82;
    if (gpu.to_device_gb_per_s > 0 && gpu.to_device_gb_per_s < 0.6 * allowed) {
      out->push_back({absl::StrFormat("copies to %s reach %.1f of %.1f GB/s", name,
                                      gpu.to_device_gb_per_s, allowed),
                      "see whether its slot shares a chipset link, and whether the processor saves "
                      "power while it copies"});
    }
    // Idle cards lower their link speed, so only a large gap is told.
    if (gpu.link_gt_per_s > 0 && gpu.link_gt_per_s * 2 <= gpu.link_gt_per_s_max) {
      out->push_back(
          {absl::StrFormat("%s's link runs at %.1f of %.1f GT/s", name, gpu.link_gt_per_s,
                           gpu.link_gt_per_s_max),
           "usual when idle; if it stays so under load, check the slot's generation in the "
           "firmware set-up and the riser"});
    }
  }
  if (!facts.gpus.empty() && !facts.gpu_note.empty()) {
    out->push_back({facts.gpu_note, "check the driver (nvidia-smi) and libpacktrain_cuda.so"});
  }
}

void JudgeMemory(const HostFacts& facts, std::vector<Finding>* out) {
  const MemoryFacts& m = facts.memory;
  if (m.module_speed > 0 && m.module_speed * 100 < m.module_speed_max * 95) {
    out->push_back(
        {absl::StrFormat("memory trains at %d of %d MT/s", m.module_speed, m.module_speed_max),
         "switch on the memory profile (XMP/EXPO) in the firmware set-up; with four "
         "modules try the highest stable step: decode speed follows it"});
  }
  if (m.cgroup_bytes != kUnlimited && m.cgroup_bytes < m.total_bytes) {
    out->push_back({absl::StrFormat("the control group allows %.1f of %.1f GiB",
                                    Gib(m.cgroup_bytes), Gib(m.total_bytes)),
                    "raise its memory.max, or run outside of the container"});
  }
  if (m.shared_huge_pages == "never" && m.huge_pages == 0) {
    out->push_back({"transparent huge pages are off for shared memory",
                    "use Linux 6.1 or newer, which makes them on request, or echo advise > "
                    "/sys/kernel/mm/transparent_hugepage/shmem_enabled, or reserve huge pages "
                    "(vm.nr_hugepages): weights are then read faster"});
  }
  if (m.private_huge_pages == "never") {
    out->push_back({"transparent huge pages are off",
                    "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled"});
  }
  const bool has_gpu = std::any_of(facts.gpus.begin(), facts.gpus.end(),
                                   [](const GpuFacts& gpu) { return gpu.index >= 0; });
  if (has_gpu && m.locked_bytes != kUnlimited && m.locked_bytes < m.total_bytes / 2) {
    out->push_back({absl::StrFormat("only %.2f GiB of memory may be locked", Gib(m.locked_bytes)),
                    "raise the memlock limit (ulimit -l unlimited): pinned copies need it"});
  }
}

void JudgeCpu(const HostFacts& facts, std::vector<Finding>* out) {
  const CpuFacts& c = facts.cpu;
  if (c.cpu_limit > 0 && c.cpu_limit < c.cores) {
    out->push_back(
        {absl::StrFormat("the control group grants %.1f of %d cores", c.cpu_limit, c.cores),
         "raise its cpu.max, or use no more threads than that"});
  }
  if (c.isa == "scalar") {
    out->push_back({"the processor has no AVX2", "expect a small part of the usual speed"});
  }
  std::vector<std::string> slow;
  for (const WeightRate& rate : facts.weight_rates) {
    if (rate.read_gb_per_s < 0.5 * facts.DramRead(0)) {
      slow.push_back(absl::StrFormat("%s %.0f", rate.type, rate.read_gb_per_s));
    }
  }
  if (!slow.empty()) {
    out->push_back({absl::StrFormat("this processor computes slower than its memory reads (%.0f "
                                    "GB/s) with %s GB/s",
                                    facts.DramRead(0), absl::StrJoin(slow, ", ")),
                    "of files of one size, one with other types in its experts decodes faster"});
  }
  const int nodes = static_cast<int>(std::count_if(
      c.numa.begin(), c.numa.end(), [](const NumaFacts& node) { return node.memory_bytes > 0; }));
  if (nodes > 1) {
    out->push_back({absl::StrFormat("memory is spread over %d NUMA nodes", nodes),
                    "interleave the experts' memory, or run one experts worker per node"});
  }
  const double one = facts.DramRead(1), best = facts.DramRead(0);
  int enough = 0;
  for (const ReadRate& rate : facts.dram_read) {
    if (enough == 0 && rate.gb_per_s >= 0.97 * best) enough = rate.threads;
  }
  if (best > 0 && one > 0 && enough > 0 && enough * 2 <= c.cores) {
    out->push_back({absl::StrFormat("%d of %d cores read all that memory gives (%.0f GB/s)", enough,
                                    c.cores, best),
                    "more threads only help where kernels, not memory, are the limit"});
  }
}

void JudgeStorage(const HostFacts& facts, std::vector<Finding>* out) {
  for (const StorageFacts& s : facts.storage) {
    if (s.file.empty()) {
      out->push_back({absl::StrCat("no model could be read directly at ", s.path),
                      "name a GGUF file or its folder with --models"});
    } else if (s.read_gb_per_s < 1) {
      out->push_back({absl::StrFormat("%s is read at %.2f GB/s%s", s.path, s.read_gb_per_s,
                                      s.rotational ? " from a rotating disk" : ""),
                      absl::StrFormat("loading 200 GB from there takes %.0f minutes; an NVMe "
                                      "drive takes one or two",
                                      200 / s.read_gb_per_s / 60)});
    }
  }
}

}  // namespace

std::vector<Finding> FindFaults(const HostFacts& facts) {
  std::vector<Finding> findings;
  JudgeMemory(facts, &findings);
  JudgeGpus(facts, &findings);
  JudgeCpu(facts, &findings);
  JudgeStorage(facts, &findings);
  return findings;
}

}  // namespace packtrain

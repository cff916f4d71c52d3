#include "worker/device/host_facts_reader.h"

#include <hwloc.h>
#include <sys/resource.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>
#include <optional>
#include <sstream>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "common/base/host_limits.h"

namespace packtrain {
namespace {

namespace fs = std::filesystem;

// The whole file without surrounding white space; empty if it cannot be read.
std::string ReadText(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  std::stringstream text;
  text << in.rdbuf();
  return std::string(absl::StripAsciiWhitespace(text.str()));
}

std::optional<uint64_t> ReadNumber(const std::string& path) {
  uint64_t value = 0;
  if (!absl::SimpleAtoi(ReadText(path), &value)) return std::nullopt;
  return value;
}

// "always [madvise] never" -> "madvise".
std::string ChosenOf(const std::string& path) {
  const std::string text = ReadText(path);
  const size_t open = text.find('['), close = text.find(']');
  if (open == std::string::npos || close == std::string::npos || close < open) return "";
  return text.substr(open + 1, close - open - 1);
}

// Speed of the memory modules from the firmware's table, which only root may read. Offsets of the
// SMBIOS "memory device" structure (type 17): size 0x0C, speed 0x15, configured speed 0x20.
void ReadModules(const std::string& root, MemoryFacts* facts) {
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(root + "/sys/firmware/dmi/entries", error)) {
    if (!absl::StartsWith(entry.path().filename().string(), "17-")) continue;
    std::ifstream in(entry.path() / "raw", std::ios::binary);
    std::vector<unsigned char> raw(0x22);
    if (!in.read(reinterpret_cast<char*>(raw.data()), static_cast<std::streamsize>(raw.size()))) {
      continue;
    }
    const auto word = [&](size_t at) { return raw[at] | raw[at + 1] << 8; };
    if (word(0x0C) == 0) continue;  // an empty slot
    ++facts->modules;
    facts->module_speed_max = std::max(facts->module_speed_max, word(0x15));
    if (const int speed = word(0x20); speed > 0) {
      facts->module_speed = facts->module_speed == 0 ? speed : std::min(facts->module_speed, speed);
    }
  }
}

// "16.0 GT/s PCIe" -> 16.
double ReadLinkSpeed(const std::string& path) {
  double speed = 0;
  const std::string text = ReadText(path);
  const std::pair<std::string, std::string> parts = absl::StrSplit(text, absl::MaxSplits(' ', 1));
  return absl::SimpleAtod(parts.first, &speed) && speed > 0 && speed < 1000 ? speed : 0;
}

struct TopologyDeleter {
  void operator()(hwloc_topology* topology) const { hwloc_topology_destroy(topology); }
};

int CoresOf(hwloc_topology_t topology, hwloc_const_cpuset_t set) {
  return hwloc_get_nbobjs_inside_cpuset_by_type(topology, set, HWLOC_OBJ_CORE);
}

using Topology = std::unique_ptr<hwloc_topology, TopologyDeleter>;

// Null if it cannot be read.
Topology LoadTopology() {
  hwloc_topology_t raw = nullptr;
  if (hwloc_topology_init(&raw) != 0) return nullptr;
  Topology topology(raw);
  return hwloc_topology_load(raw) == 0 ? std::move(topology) : nullptr;
}

struct BitmapDeleter {
  void operator()(hwloc_bitmap_s* bitmap) const { hwloc_bitmap_free(bitmap); }
};
using CpuSet = std::unique_ptr<hwloc_bitmap_s, BitmapDeleter>;

// The topology holds what the cgroup allows; the affinity of this process may be narrower.
CpuSet UsableSet(hwloc_topology_t topology) {
  CpuSet set(hwloc_bitmap_alloc());
  if (hwloc_get_cpubind(topology, set.get(), HWLOC_CPUBIND_PROCESS) != 0) {
    hwloc_bitmap_copy(set.get(), hwloc_topology_get_allowed_cpuset(topology));
  }
  return set;
}

}  // namespace

CpuFacts ReadCpuFacts() {
  CpuFacts facts;
  facts.cpu_limit = ReadCpuLimit("");
  const Topology topology = LoadTopology();
  if (topology == nullptr) return facts;
  const hwloc_topology_t raw = topology.get();
  const CpuSet usable = UsableSet(raw);
  const hwloc_const_cpuset_t set = usable.get();
  const hwloc_obj_t machine = hwloc_get_root_obj(raw);
  if (const char* model = hwloc_obj_get_info_by_name(machine, "CPUModel"); model != nullptr) {
    facts.model = model;
  } else if (const hwloc_obj_t package = hwloc_get_obj_by_type(raw, HWLOC_OBJ_PACKAGE, 0);
             package != nullptr) {
    const char* text = hwloc_obj_get_info_by_name(package, "CPUModel");
    facts.model = text == nullptr ? "" : std::string(absl::StripAsciiWhitespace(text));
  }
  facts.threads = hwloc_bitmap_weight(set);
  facts.cores = std::max(CoresOf(raw, set), 1);
  for (hwloc_obj_type_t type : {HWLOC_OBJ_L1CACHE, HWLOC_OBJ_L2CACHE, HWLOC_OBJ_L3CACHE}) {
    hwloc_obj_t cache = nullptr;
    while ((cache = hwloc_get_next_obj_by_type(raw, type, cache)) != nullptr) {
      if (!hwloc_bitmap_intersects(cache->cpuset, set)) continue;
      facts.caches.push_back({.level = static_cast<int>(cache->attr->cache.depth),
                              .bytes = cache->attr->cache.size,
                              .cores = CoresOf(raw, cache->cpuset)});
    }
  }
  hwloc_obj_t node = nullptr;
  while ((node = hwloc_get_next_obj_by_type(raw, HWLOC_OBJ_NUMANODE, node)) != nullptr) {
    facts.numa.push_back({.node = static_cast<int>(node->os_index),
                          .cores = CoresOf(raw, node->cpuset),
                          .memory_bytes = node->attr->numanode.local_memory});
  }
  return facts;
}

std::vector<int> SpreadCpus(int threads) {
  const Topology topology = LoadTopology();
  if (topology == nullptr || threads <= 0) return {};
  const CpuSet usable = UsableSet(topology.get());
  // The usable CPUs of each core, in the order of nodes, caches and cores.
  std::vector<std::vector<int>> cores;
  hwloc_obj_t core = nullptr;
  while ((core = hwloc_get_next_obj_by_type(topology.get(), HWLOC_OBJ_CORE, core)) != nullptr) {
    std::vector<int> cpus;
    for (int cpu = hwloc_bitmap_first(core->cpuset); cpu >= 0;
         cpu = hwloc_bitmap_next(core->cpuset, cpu)) {
      if (hwloc_bitmap_isset(usable.get(), static_cast<unsigned>(cpu)) != 0) cpus.push_back(cpu);
    }
    if (!cpus.empty()) cores.push_back(std::move(cpus));
  }
  std::vector<int> chosen;
  for (size_t sibling = 0; chosen.size() < static_cast<size_t>(threads); ++sibling) {
    std::vector<int> cpus;
    for (const std::vector<int>& of_core : cores) {
      if (sibling < of_core.size()) cpus.push_back(of_core[sibling]);
    }
    if (cpus.empty()) return {};
    const size_t wanted = std::min(cpus.size(), static_cast<size_t>(threads) - chosen.size());
    for (size_t i = 0; i < wanted; ++i) chosen.push_back(cpus[i * cpus.size() / wanted]);
  }
  return chosen;
}

MemoryFacts ReadMemoryFacts(const std::string& root) {
  MemoryFacts facts;
  for (absl::string_view line : absl::StrSplit(ReadText(root + "/proc/meminfo"), '\n')) {
    const std::pair<absl::string_view, absl::string_view> parts = absl::StrSplit(line, ':');
    absl::string_view text = absl::StripAsciiWhitespace(parts.second);
    const bool kib = absl::ConsumeSuffix(&text, " kB");
    uint64_t value = 0;
    if (!absl::SimpleAtoi(absl::StripAsciiWhitespace(text), &value)) continue;
    value *= kib ? 1024 : 1;
    if (parts.first == "MemTotal") facts.total_bytes = value;
    if (parts.first == "HugePages_Total") facts.huge_pages = value;
    if (parts.first == "HugePages_Free") facts.huge_pages_free = value;
    if (parts.first == "Hugepagesize") facts.huge_page_bytes = value;
  }
  const MemoryLimits limits = ReadMemoryLimits(root);
  facts.available_bytes = limits.available_bytes;
  facts.cgroup_bytes = limits.cgroup_bytes;
  facts.cgroup_used_bytes = limits.cgroup_used_bytes;
  rlimit limit{};
  if (getrlimit(RLIMIT_MEMLOCK, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY) {
    facts.locked_bytes = limit.rlim_cur;
  }
  const std::string thp = root + "/sys/kernel/mm/transparent_hugepage/";
  facts.private_huge_pages = ChosenOf(thp + "enabled");
  facts.shared_huge_pages = ChosenOf(thp + "shmem_enabled");
  std::error_code error;
  const fs::space_info space = fs::space(root + "/dev/shm", error);
  if (!error) facts.shared_memory_bytes = space.capacity;
  ReadModules(root, &facts);
  return facts;
}

std::vector<GpuFacts> ReadPciGpus(const std::string& root) {
  std::vector<GpuFacts> gpus;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(root + "/sys/bus/pci/devices", error)) {
    const std::string folder = entry.path().string() + "/";
    // A display (0x0300) or 3D (0x0302) controller of NVIDIA's.
    const std::string kind = ReadText(folder + "class");
    if (ReadText(folder + "vendor") != "0x10de" ||
        !(absl::StartsWith(kind, "0x0300") || absl::StartsWith(kind, "0x0302"))) {
      continue;
    }
    GpuFacts gpu;
    gpu.index = -1;
    gpu.pci = entry.path().filename().string();
    gpu.link_gt_per_s = ReadLinkSpeed(folder + "current_link_speed");
    gpu.link_gt_per_s_max = ReadLinkSpeed(folder + "max_link_speed");
    const auto lanes = [&](const char* file) {
      const uint64_t width = ReadNumber(folder + file).value_or(0);
      return width <= 32 ? static_cast<int>(width) : 0;
    };
    gpu.link_lanes = lanes("current_link_width");
    gpu.link_lanes_max = lanes("max_link_width");
    gpu.numa_node = static_cast<int>(
        std::min<uint64_t>(ReadNumber(folder + "numa_node").value_or(kUnlimited), 4096));
    if (gpu.numa_node == 4096) gpu.numa_node = -1;
    gpus.push_back(std::move(gpu));
  }
  std::sort(gpus.begin(), gpus.end(),
            [](const GpuFacts& a, const GpuFacts& b) { return a.pci < b.pci; });
  return gpus;
}

}  // namespace packtrain

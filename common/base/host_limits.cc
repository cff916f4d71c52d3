#include "common/base/host_limits.h"

#include <sched.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <optional>
#include <sstream>
#include <thread>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"

namespace packtrain {
namespace {

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

// Of the group's memory, page cache that nobody has used lately; it goes as soon as it is in the
// way.
uint64_t ReclaimableCache(const std::string& folder) {
  for (absl::string_view line : absl::StrSplit(ReadText(folder + "/memory.stat"), '\n')) {
    absl::ConsumePrefix(&line, "total_");
    uint64_t bytes = 0;
    if (absl::ConsumePrefix(&line, "inactive_file ") && absl::SimpleAtoi(line, &bytes)) {
      return bytes;
    }
  }
  return 0;
}

double GiB(uint64_t bytes) { return static_cast<double>(bytes) / (1 << 30); }

}  // namespace

std::vector<std::string> CgroupFolders(const std::string& root, const std::string& controller) {
  const std::string mount = root + "/sys/fs/cgroup";
  std::string path, base;
  for (absl::string_view line : absl::StrSplit(ReadText(root + "/proc/self/cgroup"), '\n')) {
    const std::vector<absl::string_view> parts = absl::StrSplit(line, absl::MaxSplits(':', 2));
    if (parts.size() != 3) continue;
    if (parts[1].empty()) {
      if (base.empty()) base = mount, path = std::string(parts[2]);
    } else {
      for (absl::string_view name : absl::StrSplit(parts[1], ',')) {
        if (name == controller)
          base = absl::StrCat(mount, "/", controller), path = std::string(parts[2]);
      }
    }
  }
  std::vector<std::string> folders;
  while (path.size() > 1) {
    folders.push_back(base + path);
    path.resize(path.rfind('/'));
  }
  folders.push_back(base.empty() ? mount : base);
  return folders;
}

double ReadCpuLimit(const std::string& root) {
  double limit = 0;
  const auto tighten = [&](double quota, double period) {
    if (quota > 0 && period > 0 && (limit == 0 || quota / period < limit)) limit = quota / period;
  };
  for (const std::string& folder : CgroupFolders(root, "cpu")) {
    const std::vector<std::string> parts = absl::StrSplit(ReadText(folder + "/cpu.max"), ' ');
    double quota = 0, period = 0;
    if (parts.size() == 2 && absl::SimpleAtod(parts[0], &quota) &&
        absl::SimpleAtod(parts[1], &period)) {
      tighten(quota, period);
    }
    tighten(static_cast<double>(ReadNumber(folder + "/cpu.cfs_quota_us").value_or(0)),
            static_cast<double>(ReadNumber(folder + "/cpu.cfs_period_us").value_or(0)));
  }
  return limit;
}

int UsableCpus() {
  cpu_set_t set;
  CPU_ZERO(&set);
  int cpus = static_cast<int>(std::thread::hardware_concurrency());
  if (sched_getaffinity(0, sizeof(set), &set) == 0) cpus = CPU_COUNT(&set);
  if (const double quota = ReadCpuLimit(""); quota > 0 && quota < cpus) {
    cpus = static_cast<int>(std::ceil(quota));
  }
  return std::max(cpus, 1);
}

int SpinBudget(int spinners, int usable_cpus) {
  return usable_cpus > 2 && spinners <= usable_cpus ? 50 : 0;
}

MemoryLimits ReadMemoryLimits(const std::string& root) {
  MemoryLimits limits;
  for (absl::string_view line : absl::StrSplit(ReadText(root + "/proc/meminfo"), '\n')) {
    if (!absl::ConsumePrefix(&line, "MemAvailable:")) continue;
    absl::ConsumeSuffix(&line, "kB");
    uint64_t kib = 0;
    if (absl::SimpleAtoi(line, &kib)) limits.available_bytes = kib * 1024;
  }
  for (const std::string& folder : CgroupFolders(root, "memory")) {
    for (const auto& [limit_file, used_file] :
         {std::pair("/memory.max", "/memory.current"),
          std::pair("/memory.limit_in_bytes", "/memory.usage_in_bytes")}) {
      const std::optional<uint64_t> limit = ReadNumber(folder + limit_file);
      // Version 1 writes "no limit" as the largest page-aligned number.
      if (!limit || *limit >= uint64_t{1} << 60 || *limit >= limits.cgroup_bytes) continue;
      limits.cgroup_bytes = *limit;
      const uint64_t used = ReadNumber(folder + used_file).value_or(0);
      limits.cgroup_used_bytes = used - std::min(used, ReclaimableCache(folder));
    }
  }
  return limits;
}

absl::Status CheckMemory(const MemoryLimits& limits, uint64_t bytes, const std::string& what) {
  if (bytes > limits.available_bytes) {
    return absl::ResourceExhaustedError(
        absl::StrFormat("%s: %.2f GiB of memory needed, %.2f GiB of this host's are available",
                        what, GiB(bytes), GiB(limits.available_bytes)));
  }
  if (limits.cgroup_bytes == MemoryLimits::kNone) return absl::OkStatus();
  const uint64_t left =
      limits.cgroup_bytes - std::min(limits.cgroup_bytes, limits.cgroup_used_bytes);
  if (bytes <= left) return absl::OkStatus();
  return absl::ResourceExhaustedError(absl::StrFormat(
      "%s: %.2f GiB of memory needed, the control group's limit of %.2f GiB leaves %.2f GiB", what,
      GiB(bytes), GiB(limits.cgroup_bytes), GiB(left)));
}

}  // namespace packtrain

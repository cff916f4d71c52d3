#include "coordinator/cli/doctor_command.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "common/base/status_macros.h"
#include "common/config/host_facts.h"
#include "coordinator/cli/doctor_findings.h"
#include "coordinator/cli/host_probe.h"

namespace packtrain {
namespace {

std::string Gib(uint64_t bytes) {
  if (bytes == kUnlimited) return "no limit";
  return absl::StrFormat("%.1f GiB", static_cast<double>(bytes) / (1 << 30));
}

std::string OrUnknown(const std::string& text) { return text.empty() ? "unknown" : text; }

void Line(std::string* out, const char* name, const std::string& text) {
  absl::StrAppendFormat(out, "  %-22s %s\n", name, text);
}

// "Q4_K 92, IQ2_XS 58".
std::string RatesText(std::vector<WeightRate> rates, double WeightRate::*field) {
  std::erase_if(rates, [&](const WeightRate& rate) { return rate.*field <= 0; });
  return absl::StrJoin(rates, ", ", [&](std::string* out, const WeightRate& rate) {
    absl::StrAppendFormat(out, "%s %.0f", rate.type, rate.*field);
  });
}

void AppendCpu(const HostFacts& facts, std::string* out) {
  const CpuFacts& c = facts.cpu;
  Line(out, "processor", absl::StrCat(OrUnknown(c.model), ", kernels ", c.isa));
  Line(out, "cores",
       absl::StrFormat("%d, %d threads%s", c.cores, c.threads,
                       c.cpu_limit > 0 ? absl::StrFormat(", limited to %.1f", c.cpu_limit) : ""));
  for (int level = 1; level <= 3; ++level) {
    uint64_t bytes = 0;
    int count = 0;
    for (const CacheFacts& cache : c.caches) {
      if (cache.level != level) continue;
      ++count;
      bytes = std::max(bytes, cache.bytes);
    }
    if (count > 0) {
      Line(out, absl::StrCat("L", level, " cache").c_str(),
           absl::StrFormat("%d x %d KiB", count, bytes >> 10));
    }
  }
  Line(out, "NUMA nodes", absl::StrCat(c.numa.size()));
}

void AppendMemory(const HostFacts& facts, std::string* out) {
  const MemoryFacts& m = facts.memory;
  Line(out, "memory", absl::StrCat(Gib(m.total_bytes), ", free ", Gib(m.available_bytes)));
  if (m.module_speed > 0) {
    Line(out, "modules",
         absl::StrFormat("%d at %d MT/s (made for %d)", m.modules, m.module_speed,
                         m.module_speed_max));
  }
  Line(out, "control group limit", Gib(m.cgroup_bytes));
  Line(out, "lockable", Gib(m.locked_bytes));
  Line(out, "huge pages",
       absl::StrFormat("private %s, shared %s, reserved %d x %d MiB (%d free)",
                       OrUnknown(m.private_huge_pages), OrUnknown(m.shared_huge_pages),
                       m.huge_pages, m.huge_page_bytes >> 20, m.huge_pages_free));
  std::string rates;
  for (const ReadRate& rate : facts.dram_read) {
    absl::StrAppendFormat(&rates, "%s%d: %.1f", rates.empty() ? "" : ", ", rate.threads,
                          rate.gb_per_s);
  }
  Line(out, "DRAM read by threads", rates.empty() ? "not measured" : rates + " GB/s");
  if (!facts.weight_rates.empty()) {
    Line(out, "weights read, GB/s", RatesText(facts.weight_rates, &WeightRate::read_gb_per_s));
    Line(out, "picked experts, GB/s",
         absl::StrFormat("%s, and %.0f us a layer",
                         RatesText(facts.weight_rates, &WeightRate::experts_gb_per_s),
                         facts.experts_layer_us));
  }
  Line(out, "flag round trip",
       absl::StrFormat("threads %.2f us, processes %.2f us", facts.thread_round_trip_us,
                       facts.process_round_trip_us));
}

void AppendGpu(const GpuFacts& g, std::string* out) {
  const std::string name = g.index >= 0 ? absl::StrCat("cuda:", g.index) : "GPU";
  std::string text = absl::StrCat(OrUnknown(g.name), " at ", OrUnknown(g.pci));
  if (g.memory_bytes > 0) {
    absl::StrAppend(&text, ", ", Gib(g.memory_bytes), ", free ", Gib(g.free_bytes));
  }
  if (g.compute_capability > 0) {
    absl::StrAppendFormat(&text, ", compute %d.%d, %d multiprocessors", g.compute_capability / 10,
                          g.compute_capability % 10, g.multiprocessors);
  }
  Line(out, name.c_str(), text);
  std::string link = "unknown";
  if (g.link_lanes > 0) {
    link = absl::StrFormat("x%d of x%d, %.1f of %.1f GT/s", g.link_lanes, g.link_lanes_max,
                           g.link_gt_per_s, g.link_gt_per_s_max);
  }
  if (g.to_device_gb_per_s > 0) {
    absl::StrAppendFormat(&link, ", copies %.1f to it, %.1f from it GB/s, flag round trip %.1f us",
                          g.to_device_gb_per_s, g.from_device_gb_per_s, g.flag_round_trip_us);
  }
  absl::StrAppend(&link, g.peers.empty() ? "" : ", reaches cuda:", absl::StrJoin(g.peers, ", "));
  Line(out, "  link", link);
  if (g.read_gb_per_s > 0) {
    Line(out, "  speed",
         absl::StrFormat("reads %.0f GB/s, bf16 product %.0f TFLOP/s, %.1f us a kernel",
                         g.read_gb_per_s, g.bf16_tflops, g.product_us));
    Line(out, "  weights read, GB/s", RatesText(g.weight_rates, &WeightRate::read_gb_per_s));
  }
}

void AppendDevices(const HostFacts& facts, std::string* out) {
  for (const StorageFacts& s : facts.storage) {
    Line(out, "storage",
         s.file.empty() ? s.path + ": nothing to read"
                        : absl::StrFormat("%s: %.2f GB/s%s", s.path, s.read_gb_per_s,
                                          s.rotational ? ", rotating" : ""));
  }
  for (const GpuFacts& gpu : facts.gpus) AppendGpu(gpu, out);
  if (facts.gpus.empty()) Line(out, "GPUs", "none");
}

std::string Report(const HostFacts& facts, const std::vector<Finding>& findings) {
  std::string out = absl::StrCat(facts.name, " (Linux ", facts.kernel, ")\n");
  AppendCpu(facts, &out);
  AppendMemory(facts, &out);
  AppendDevices(facts, &out);
  absl::StrAppend(&out, findings.empty() ? "\nNothing hurts.\n" : "\nWhat hurts:\n");
  for (const Finding& f : findings) absl::StrAppend(&out, "  - ", f.what, "\n    ", f.fix, "\n");
  return out;
}

std::string ReportJson(const HostFacts& facts, const std::vector<Finding>& findings) {
  nlohmann::ordered_json json;
  json["facts"] = nlohmann::ordered_json::parse(HostFactsToJson(facts));
  json["findings"] = nlohmann::ordered_json::array();
  for (const Finding& f : findings) json["findings"].push_back({{"what", f.what}, {"fix", f.fix}});
  return json.dump(2);
}

}  // namespace

CLI::App* AddDoctor(CLI::App* app, DoctorOptions* options) {
  CLI::App* doctor =
      app->add_subcommand("doctor", "measure this machine, say what hurts and how to mend it");
  doctor->add_option("--models", options->models, "files or folders of models on their storage");
  doctor->add_flag("--json", options->json, "as JSON");
  doctor->add_flag("--no-cache", options->no_cache, "do not keep the facts for `packtrain plan`");
  return doctor;
}

absl::Status RunDoctor(const DoctorOptions& options) {
  ASSIGN_OR_RETURN(const HostFacts facts, ProbeThisHost(options.models));
  const std::vector<Finding> findings = FindFaults(facts);
  std::fputs((options.json ? ReportJson(facts, findings) + "\n" : Report(facts, findings)).c_str(),
             stdout);
  const std::string path = FactsCachePath();
  if (options.no_cache || path.empty()) return absl::OkStatus();
  RETURN_IF_ERROR(WriteFactsCache(facts, path));
  if (!options.json) std::printf("\nKept for packtrain plan in %s\n", path.c_str());
  return absl::OkStatus();
}

}  // namespace packtrain

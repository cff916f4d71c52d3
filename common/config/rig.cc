#include "common/config/rig.h"

#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <exception>
#include <fstream>
#include <initializer_list>
#include <sstream>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "common/base/status_macros.h"

namespace packtrain {
namespace {

// What is wrong with the file, on its way to the Status that LoadRig returns.
struct Wrong : std::exception {
  Wrong(const YAML::Node& node, std::string text)
      : line(node.Mark().line + 1), message(std::move(text)) {}
  int line;
  std::string message;
};

void RequireMap(const YAML::Node& node, const std::string& what,
                std::initializer_list<const char*> allowed) {
  if (!node.IsMap()) throw Wrong(node, absl::StrCat(what, ": must be a list of keys and values"));
  for (const auto& item : node) {
    const std::string key = item.first.as<std::string>("");
    if (std::find(allowed.begin(), allowed.end(), key) == allowed.end()) {
      throw Wrong(item.first, absl::StrCat(what, ": unknown key '", key, "'; allowed are ",
                                           absl::StrJoin(allowed, ", ")));
    }
  }
}

std::string Text(const YAML::Node& map, const char* key, bool required) {
  const YAML::Node node = map[key];
  if (!node && !required) return "";
  if (!node) throw Wrong(map, absl::StrCat(key, ": missing"));
  if (!node.IsScalar() || node.Scalar().empty()) {
    throw Wrong(node, absl::StrCat(key, ": must be a name"));
  }
  return node.Scalar();
}

double Number(const YAML::Node& node, const std::string& key, double least, double most) {
  double value = 0;
  if (!node.IsScalar() || !YAML::convert<double>::decode(node, value) || !(value >= least) ||
      !(value <= most)) {
    throw Wrong(node, absl::StrFormat("%s: '%s' is not a number from %g to %g", key,
                                      node.IsScalar() ? node.Scalar() : "...", least, most));
  }
  return value;
}

double Number(const YAML::Node& map, const char* key, double least, double most, bool required) {
  const YAML::Node node = map[key];
  if (!node && !required) return 0;
  if (!node) throw Wrong(map, absl::StrCat(key, ": missing"));
  return Number(node, std::string(key), least, most);
}

int Whole(const YAML::Node& map, const char* key, int least, int most, bool required) {
  const double value = Number(map, key, least, most, required);
  if (value != static_cast<int>(value)) {
    throw Wrong(map[key], absl::StrCat(key, ": must be a whole number"));
  }
  return static_cast<int>(value);
}

uint64_t Gib(const YAML::Node& map, const char* key, double most) {
  return static_cast<uint64_t>(Number(map, key, 0.25, most, true) * (1 << 30));
}

GpuFacts ParseGpu(const YAML::Node& node, int index) {
  RequireMap(node, "gpus",
             {"name", "memory_gib", "read_gbps", "tflops", "link_gbps", "link_lanes"});
  GpuFacts gpu;
  gpu.index = index;
  gpu.name = Text(node, "name", true);
  gpu.memory_bytes = Gib(node, "memory_gib", 1024);
  gpu.free_bytes = gpu.memory_bytes;
  gpu.read_gb_per_s = Number(node, "read_gbps", 1, 100000, true);
  gpu.bf16_tflops = Number(node, "tflops", 0.1, 100000, true);
  gpu.to_device_gb_per_s = Number(node, "link_gbps", 0.05, 2000, true);
  gpu.from_device_gb_per_s = gpu.to_device_gb_per_s;
  gpu.link_lanes = Whole(node, "link_lanes", 1, 32, false);
  return gpu;
}

HostFacts ParseHost(const YAML::Node& node) {
  RequireMap(node, "hosts",
             {"name", "cpu", "cores", "memory_gib", "dram_read_gbps", "experts_read_gbps", "gpus"});
  HostFacts host;
  host.name = Text(node, "name", true);
  host.cpu.model = Text(node, "cpu", false);
  host.cpu.cores = Whole(node, "cores", 1, 4096, true);
  host.cpu.threads = host.cpu.cores;
  host.memory.total_bytes = Gib(node, "memory_gib", 65536);
  host.memory.available_bytes = host.memory.total_bytes;
  const YAML::Node read = node["dram_read_gbps"];
  if (!read) throw Wrong(node, "dram_read_gbps: missing");
  if (read.IsMap()) {
    for (const auto& item : read) {
      const int threads =
          static_cast<int>(Number(item.first, std::string("dram_read_gbps: threads"), 1, 4096));
      host.dram_read.push_back(
          {threads, Number(item.second, std::string("dram_read_gbps"), 0.1, 100000)});
    }
    std::sort(host.dram_read.begin(), host.dram_read.end(),
              [](const ReadRate& a, const ReadRate& b) { return a.threads < b.threads; });
  } else {
    host.dram_read.push_back(
        {host.cpu.cores, Number(read, std::string("dram_read_gbps"), 0.1, 100000)});
  }
  host.experts_read_gb_per_s = Number(node, "experts_read_gbps", 0.1, 100000, false);
  if (const YAML::Node gpus = node["gpus"]) {
    if (!gpus.IsSequence()) throw Wrong(gpus, "gpus: must be a list");
    for (const YAML::Node& gpu : gpus) {
      host.gpus.push_back(ParseGpu(gpu, static_cast<int>(host.gpus.size())));
    }
  }
  return host;
}

NetworkFacts ParseNetwork(const YAML::Node& node, const Rig& rig) {
  RequireMap(node, "network", {"between", "gbps", "round_trip_us"});
  const YAML::Node between = node["between"];
  if (!between || !between.IsSequence() || between.size() != 2) {
    throw Wrong(node, "between: must be a list of two hosts");
  }
  NetworkFacts facts;
  facts.from = between[0].as<std::string>("");
  facts.to = between[1].as<std::string>("");
  for (size_t i = 0; i < 2; ++i) {
    if (rig.FindHost(between[i].as<std::string>("")) == nullptr) {
      throw Wrong(between[i], absl::StrCat("between: '", between[i].as<std::string>(""),
                                           "' is not one of the hosts"));
    }
  }
  facts.gb_per_s = Number(node, "gbps", 0.001, 1000, true);
  facts.round_trip_us = Number(node, "round_trip_us", 1, 1e6, true);
  return facts;
}

Rig ParseNode(const YAML::Node& root) {
  RequireMap(root, "rig", {"name", "hosts", "network"});
  Rig rig;
  rig.name = Text(root, "name", true);
  const YAML::Node hosts = root["hosts"];
  if (!hosts || !hosts.IsSequence() || hosts.size() == 0) {
    throw Wrong(root, "hosts: must be a list with at least one host");
  }
  for (const YAML::Node& node : hosts) {
    HostFacts host = ParseHost(node);
    if (rig.FindHost(host.name) != nullptr) {
      throw Wrong(node, absl::StrCat("hosts: two hosts are called '", host.name, "'"));
    }
    rig.hosts.push_back(std::move(host));
  }
  if (const YAML::Node network = root["network"]) {
    if (!network.IsSequence()) throw Wrong(network, "network: must be a list");
    for (const YAML::Node& node : network) rig.network.push_back(ParseNetwork(node, rig));
  }
  return rig;
}

}  // namespace

const HostFacts* Rig::FindHost(const std::string& host_name) const {
  for (const HostFacts& host : hosts) {
    if (host.name == host_name) return &host;
  }
  return nullptr;
}

NetworkFacts Rig::Network(const std::string& a, const std::string& b) const {
  for (const NetworkFacts& facts : network) {
    if ((facts.from == a && facts.to == b) || (facts.from == b && facts.to == a)) return facts;
  }
  return {.from = a, .to = b, .gb_per_s = 0.117, .round_trip_us = 200};
}

absl::StatusOr<Rig> ParseRig(const std::string& text, const std::string& file_name) {
  try {
    return ParseNode(YAML::Load(text));
  } catch (const Wrong& e) {
    return absl::InvalidArgumentError(absl::StrCat(file_name, ":", e.line, ": ", e.message));
  } catch (const YAML::Exception& e) {
    return absl::InvalidArgumentError(absl::StrCat(file_name, ":", e.mark.line + 1, ": ", e.msg));
  }
}

absl::StatusOr<Rig> LoadRig(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) return absl::NotFoundError(absl::StrCat(path, ": cannot be read"));
  std::stringstream text;
  text << in.rdbuf();
  return ParseRig(text.str(), path);
}

}  // namespace packtrain

#include "common/config/rig.h"

#include <algorithm>
#include <fstream>
#include <sstream>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/base/status_macros.h"
#include "common/config/yaml_fields.h"
#include "common/config/yaml_tree.h"

namespace packtrain {
namespace {

constexpr int kThreadsMax = 4096;
constexpr double kRateMax = 100000;

YamlReader Number(double least, double most, double* out) {
  return [=](const YamlNode& value, const YamlPlace& place) {
    return ReadNumber(value, place, least, most, out);
  };
}

YamlReader Gib(double most, uint64_t* out) {
  return [=](const YamlNode& value, const YamlPlace& place) {
    return ReadGib(value, place, most, out);
  };
}

YamlReader Whole(int least, int most, int* out) {
  return [=](const YamlNode& value, const YamlPlace& place) {
    return ReadInt(value, place, least, most, out);
  };
}

YamlReader Text(std::string* out) {
  return [=](const YamlNode& value, const YamlPlace& place) { return ReadText(value, place, out); };
}

absl::Status ReadGpu(const YamlNode& node, const YamlPlace& place, HostFacts* host) {
  GpuFacts gpu;
  gpu.index = static_cast<int>(host->gpus.size());
  RETURN_IF_ERROR(ReadMap(node, place,
                          {{"name", Text(&gpu.name)},
                           {"memory_gib", Gib(1024, &gpu.memory_bytes)},
                           {"read_gbps", Number(1, kRateMax, &gpu.read_gb_per_s)},
                           {"tflops", Number(0.1, kRateMax, &gpu.bf16_tflops)},
                           {"link_gbps", Number(0.05, 2000, &gpu.to_device_gb_per_s)},
                           {"link_lanes", Whole(1, 32, &gpu.link_lanes)}},
                          {"name", "memory_gib", "read_gbps", "tflops", "link_gbps"}));
  gpu.free_bytes = gpu.memory_bytes;
  gpu.from_device_gb_per_s = gpu.to_device_gb_per_s;
  host->gpus.push_back(std::move(gpu));
  return absl::OkStatus();
}

// One figure for all cores, or a map from numbers of threads to figures.
absl::Status ReadDramRead(const YamlNode& node, const YamlPlace& place, HostFacts* host) {
  if (node.kind != YamlNode::Kind::kMap) {
    host->dram_read.resize(1);
    return ReadNumber(node, place, 0.1, kRateMax, &host->dram_read[0].gb_per_s);
  }
  for (const YamlNode::Entry& entry : node.map) {
    ReadRate rate;
    if (!absl::SimpleAtoi(entry.key, &rate.threads) || rate.threads < 1 ||
        rate.threads > kThreadsMax) {
      return place.Key(entry.key, entry.line)
          .Error(absl::StrFormat("is no number of threads; allowed: 1 to %d", kThreadsMax));
    }
    RETURN_IF_ERROR(
        ReadNumber(entry.value, place.Key(entry.key, entry.line), 0.1, kRateMax, &rate.gb_per_s));
    host->dram_read.push_back(rate);
  }
  std::sort(host->dram_read.begin(), host->dram_read.end(),
            [](const ReadRate& a, const ReadRate& b) { return a.threads < b.threads; });
  return absl::OkStatus();
}

absl::Status ReadHost(const YamlNode& node, const YamlPlace& place, Rig* rig) {
  HostFacts host;
  const auto dram_read = [&](const YamlNode& value, const YamlPlace& at) {
    return ReadDramRead(value, at, &host);
  };
  const auto gpus = [&](const YamlNode& value, const YamlPlace& at) {
    return ReadList(value, at, [&](const YamlNode& gpu, const YamlPlace& gpu_at) {
      return ReadGpu(gpu, gpu_at, &host);
    });
  };
  RETURN_IF_ERROR(
      ReadMap(node, place,
              {{"name", Text(&host.name)},
               {"cpu", Text(&host.cpu.model)},
               {"cores", Whole(1, kThreadsMax, &host.cpu.cores)},
               {"memory_gib", Gib(65536, &host.memory.total_bytes)},
               {"dram_read_gbps", dram_read},
               {"experts_read_gbps", Number(0.1, kRateMax, &host.experts_read_gb_per_s)},
               {"gpus", gpus}},
              {"name", "cores", "memory_gib", "dram_read_gbps"}));
  if (host.name.empty() || rig->FindHost(host.name) != nullptr) {
    return place.Error(
        absl::StrFormat("is called \"%s\"; every host needs a name of its own", host.name));
  }
  host.memory.available_bytes = host.memory.total_bytes;
  if (host.dram_read.size() == 1 && host.dram_read[0].threads == 0) {
    host.dram_read[0].threads = host.cpu.cores;
  }
  rig->hosts.push_back(std::move(host));
  return absl::OkStatus();
}

absl::Status ReadNetwork(const YamlNode& node, const YamlPlace& place, Rig* rig) {
  std::vector<std::string> ends;
  NetworkFacts facts;
  const auto between = [&](const YamlNode& value, const YamlPlace& at) {
    return ReadList(value, at, [&](const YamlNode& end, const YamlPlace& end_at) -> absl::Status {
      std::string name;
      RETURN_IF_ERROR(ReadText(end, end_at, &name));
      if (rig->FindHost(name) == nullptr) {
        return end_at.Error(absl::StrFormat("is \"%s\", which is none of the hosts", name));
      }
      ends.push_back(std::move(name));
      return absl::OkStatus();
    });
  };
  RETURN_IF_ERROR(ReadMap(node, place,
                          {{"between", between},
                           {"gbps", Number(0.001, 1000, &facts.gb_per_s)},
                           {"round_trip_us", Number(1, 1e6, &facts.round_trip_us)}},
                          {"between", "gbps", "round_trip_us"}));
  if (ends.size() != 2 || ends[0] == ends[1]) {
    return place.Error("connects other than two hosts; allowed: between: [HOST, HOST]");
  }
  facts.from = ends[0];
  facts.to = ends[1];
  rig->network.push_back(std::move(facts));
  return absl::OkStatus();
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

absl::StatusOr<Rig> ParseRig(const std::string& text, const std::string& source) {
  ASSIGN_OR_RETURN(const YamlNode root, ParseYaml(text, source));
  Rig rig;
  // The network names hosts, so it is read once they are known.
  const YamlNode* network = nullptr;
  const auto hosts = [&](const YamlNode& value, const YamlPlace& at) {
    return ReadList(value, at, [&](const YamlNode& host, const YamlPlace& host_at) {
      return ReadHost(host, host_at, &rig);
    });
  };
  const auto later = [&](const YamlNode& value, const YamlPlace&) {
    network = &value;
    return absl::OkStatus();
  };
  const YamlPlace top = {&source, root.line, ""};
  RETURN_IF_ERROR(ReadMap(root, top,
                          {{"name", Text(&rig.name)}, {"hosts", hosts}, {"network", later}},
                          {"name", "hosts"}));
  if (rig.hosts.empty()) return top.Key("hosts", root.line).Error("is empty; a rig has hosts");
  if (network != nullptr) {
    RETURN_IF_ERROR(ReadList(
        *network, top.Key("network", network->line),
        [&](const YamlNode& link, const YamlPlace& at) { return ReadNetwork(link, at, &rig); }));
  }
  return rig;
}

absl::StatusOr<Rig> LoadRig(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) return absl::NotFoundError(absl::StrCat(path, ": cannot be read"));
  std::stringstream text;
  text << in.rdbuf();
  if (!absl::EndsWith(path, ".json")) return ParseRig(text.str(), path);
  absl::StatusOr<HostFacts> facts = HostFactsFromJson(text.str());
  if (!facts.ok()) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": ", facts.status().message()));
  }
  Rig rig;
  rig.name = facts->name;
  rig.hosts.push_back(*std::move(facts));
  return rig;
}

}  // namespace packtrain

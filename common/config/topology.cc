#include "common/config/topology.h"

#include <filesystem>
#include <fstream>
#include <limits>
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

constexpr int kContextMin = 64;
constexpr int kContextMax = 16 << 20;
constexpr int kSlotsMax = 256;
constexpr int kThreadsMax = 1024;
constexpr int kUbatchMin = 16;
constexpr int kUbatchMax = 8192;
constexpr int kLayersMax = 100000;
constexpr size_t kApiKeyCharsMin = 16;

bool ParseLayers(absl::string_view text, LayerRange* out) {
  const size_t dash = text.find('-');
  LayerRange range;
  if (!absl::SimpleAtoi(text.substr(0, dash), &range.first)) return false;
  range.last = range.first;
  if (dash != absl::string_view::npos && !absl::SimpleAtoi(text.substr(dash + 1), &range.last)) {
    return false;
  }
  if (range.first < 0 || range.last < range.first || range.last >= kLayersMax) return false;
  ++range.last;
  *out = range;
  return true;
}

absl::Status ReadLayers(const YamlNode& node, const YamlPlace& place,
                        std::optional<LayerRange>* out) {
  std::string text;
  RETURN_IF_ERROR(ReadText(node, place, &text));
  LayerRange range;
  if (!ParseLayers(text, &range)) {
    return place.Error(absl::StrFormat(
        "is \"%s\"; allowed: FIRST-LAST, both included, as in 26-51, or one layer's number", text));
  }
  *out = range;
  return absl::OkStatus();
}

// Or "none": all of a stage's routed experts are an experts worker's.
absl::Status ReadResidentExperts(const YamlNode& node, const YamlPlace& place,
                                 std::optional<LayerRange>* out) {
  std::string text;
  RETURN_IF_ERROR(ReadText(node, place, &text));
  if (text != "none") return ReadLayers(node, place, out);
  *out = LayerRange{};
  return absl::OkStatus();
}

// "host/cpu", or "cpu" where the topology names no hosts.
absl::Status ReadDevice(const YamlNode& node, const YamlPlace& place, WorkerEntry* worker) {
  std::string text;
  RETURN_IF_ERROR(ReadText(node, place, &text));
  const size_t slash = text.find('/');
  worker->host = slash == std::string::npos ? "" : text.substr(0, slash);
  worker->device = slash == std::string::npos ? text : text.substr(slash + 1);
  int index = 0;
  const bool cuda = absl::StartsWith(worker->device, "cuda:") &&
                    absl::SimpleAtoi(worker->device.substr(5), &index) && index >= 0 &&
                    worker->device == absl::StrCat("cuda:", index);
  if ((worker->device != "cpu" && !cuda) || slash == 0) {
    return place.Error(absl::StrFormat(
        "\"%s\" is no device; allowed: HOST/cpu, HOST/cuda:N, and without HOST/ where the "
        "topology names no hosts",
        text));
  }
  return absl::OkStatus();
}

absl::Status ReadAddress(const YamlNode& node, const YamlPlace& place, std::string* host,
                         int* port) {
  std::string text;
  RETURN_IF_ERROR(ReadText(node, place, &text));
  if (absl::Status status = ParseAddress(text, host, port); !status.ok()) {
    return place.Error(status.message());
  }
  return absl::OkStatus();
}

absl::Status ReadWorker(const YamlNode& node, const YamlPlace& place, WorkerEntry* out) {
  out->line = node.line;
  return ReadMap(
      node, place,
      {{"device", [&](auto& v, auto& p) { return ReadDevice(v, p, out); }},
       {"role",
        [&](auto& v, auto& p) {
          size_t index = 0;
          RETURN_IF_ERROR(ReadWord(v, p, {"stage", "experts"}, &index));
          out->role = index == 0 ? WorkerRole::kStage : WorkerRole::kExperts;
          return absl::OkStatus();
        }},
       {"layers", [&](auto& v, auto& p) { return ReadLayers(v, p, &out->layers); }},
       {"resident_experts",
        [&](auto& v, auto& p) { return ReadResidentExperts(v, p, &out->resident_experts); }},
       {"threads", [&](auto& v, auto& p) { return ReadInt(v, p, 1, kThreadsMax, &out->threads); }},
       {"memory_gib", [&](auto& v, auto& p) { return ReadGib(v, p, 1024, &out->memory_bytes); }},
       {"address",
        [&](auto& v, auto& p) {
          std::string host;
          int port = 0;
          RETURN_IF_ERROR(ReadAddress(v, p, &host, &port));
          return ReadText(v, p, &out->address);
        }}},
      {"device"});
}

absl::Status ReadModel(const YamlNode& node, const YamlPlace& place, ModelEntry* out) {
  out->line = node.line;
  return ReadMap(
      node, place,
      {{"name", [&](auto& v, auto& p) { return ReadText(v, p, &out->name); }},
       {"role",
        [&](auto& v, auto& p) {
          size_t index = 0;
          RETURN_IF_ERROR(ReadWord(v, p, {"primary", "sidecar"}, &index));
          return ReadText(v, p, &out->role);
        }},
       {"path", [&](auto& v, auto& p) { return ReadText(v, p, &out->path); }},
       {"context",
        [&](auto& v, auto& p) { return ReadInt(v, p, kContextMin, kContextMax, &out->context); }},
       {"kv_cache",
        [&](auto& v, auto& p) {
          size_t index = 0;
          RETURN_IF_ERROR(ReadWord(v, p, {"f32", "f16", "q8_0", "q4_1"}, &index));
          out->kv_cache = *ParseKvCacheType(v.scalar);
          return absl::OkStatus();
        }},
       {"thinking",
        [&](auto& v, auto& p) {
          return ReadBool(v, p, {"off", "on"}, &out->thinking);
        }},
       {"slots", [&](auto& v, auto& p) { return ReadInt(v, p, 1, kSlotsMax, &out->slots); }},
       {"ubatch",
        [&](auto& v, auto& p) { return ReadInt(v, p, kUbatchMin, kUbatchMax, &out->ubatch); }},
       {"threads", [&](auto& v, auto& p) { return ReadInt(v, p, 1, kThreadsMax, &out->threads); }},
       {"workers",
        [&](auto& v, auto& p) {
          return ReadList(v, p, [&](auto& item, auto& at) {
            return ReadWorker(item, at, &out->workers.emplace_back());
          });
        }}},
      {"name", "path"});
}

absl::Status ReadLink(const YamlNode& node, const YamlPlace& place, LinkEntry* out) {
  out->line = node.line;
  return ReadMap(node, place,
                 {{"between",
                   [&](auto& v, auto& p) {
                     if (v.kind != YamlNode::Kind::kList || v.list.size() != 2) {
                       return p.Error("allowed: a list of two devices, \"*\" for any");
                     }
                     for (size_t i = 0; i < 2; ++i) {
                       RETURN_IF_ERROR(ReadText(v.list[i], p.Item(i, v.line), &out->between[i]));
                     }
                     return absl::OkStatus();
                   }},
                  {"transport",
                   [&](auto& v, auto& p) {
                     size_t index = 0;
                     RETURN_IF_ERROR(ReadWord(v, p, {"nccl", "shm", "grpc"}, &index));
                     return ReadText(v, p, &out->transport);
                   }}},
                 {"between", "transport"});
}

absl::Status ReadTopology(const YamlNode& root, const YamlPlace& place, Topology* out) {
  return ReadMap(
      root, place,
      {{"listen",
        [&](auto& v, auto& p) {
          return ReadAddress(v, p, &out->listen_address, &out->listen_port);
        }},
       {"hosts",
        [&](auto& v, auto& p) {
          return ReadList(v, p, [&](auto& item, auto& at) {
            HostEntry& host = out->hosts.emplace_back();
            host.line = item.line;
            return ReadMap(item, at,
                           {{"name", [&](auto& n, auto& q) { return ReadText(n, q, &host.name); }}},
                           {"name"});
          });
        }},
       {"models",
        [&](auto& v, auto& p) {
          return ReadList(v, p, [&](auto& item, auto& at) {
            return ReadModel(item, at, &out->models.emplace_back());
          });
        }},
       {"links",
        [&](auto& v, auto& p) {
          return ReadList(v, p, [&](auto& item, auto& at) {
            return ReadLink(item, at, &out->links.emplace_back());
          });
        }},
       {"api_keys",
        [&](auto& v, auto& p) {
          return ReadList(v, p, [&](auto& item, auto& at) {
            RETURN_IF_ERROR(ReadText(item, at, &out->api_keys.emplace_back()));
            if (out->api_keys.back().size() >= kApiKeyCharsMin) return absl::OkStatus();
            // The key itself stays out of logs.
            return at.Error(absl::StrFormat("has %d characters; allowed: at least %d",
                                            out->api_keys.back().size(), kApiKeyCharsMin));
          });
        }},
       {"insecure",
        [&](auto& v, auto& p) {
          return ReadBool(v, p, {"false", "true"}, &out->insecure);
        }},
       {"tls",
        [&](auto& v, auto& p) {
          TlsFiles& tls = out->tls;
          out->tls_line = p.line;
          return ReadMap(
              v, p,
              {{"ca", [&](auto& n, auto& q) { return ReadText(n, q, &tls.ca); }},
               {"certificate", [&](auto& n, auto& q) { return ReadText(n, q, &tls.certificate); }},
               {"key", [&](auto& n, auto& q) { return ReadText(n, q, &tls.key); }}},
              {"ca", "certificate", "key"});
        }}},
      {"models"});
}

}  // namespace

std::string FormatLayers(LayerRange layers) {
  if (layers.last == layers.first + 1) return absl::StrCat(layers.first);
  return absl::StrCat(layers.first, "-", layers.last - 1);
}

absl::StatusOr<KvCacheType> ParseKvCacheType(const std::string& text) {
  if (text == "f32") return KvCacheType::kF32;
  if (text == "f16") return KvCacheType::kF16;
  if (text == "q8_0") return KvCacheType::kQ8_0;
  if (text == "q4_1") return KvCacheType::kQ4_1;
  return absl::InvalidArgumentError(
      absl::StrFormat("\"%s\" is no KV cache type; allowed: f32, f16, q8_0, q4_1", text));
}

absl::Status ParseAddress(const std::string& address, std::string* host, int* port) {
  const absl::string_view text = address;
  const size_t colon = text.rfind(':');
  absl::string_view name = text.substr(0, colon == absl::string_view::npos ? 0 : colon);
  const bool bracketed = absl::StartsWith(name, "[") && absl::EndsWith(name, "]");
  if (bracketed) name = name.substr(1, name.size() - 2);
  int number = -1;
  if (name.empty() || (!bracketed && absl::StrContains(name, ":")) ||
      absl::StrContains(name, " ") || !absl::SimpleAtoi(text.substr(colon + 1), &number) ||
      number < 0 || number > std::numeric_limits<uint16_t>::max()) {
    return absl::InvalidArgumentError(
        absl::StrFormat("\"%s\" is no address; allowed: HOST:PORT, with an IPv6 host in brackets "
                        "and a port from 0 to 65535",
                        text));
  }
  *host = std::string(name);
  *port = number;
  return absl::OkStatus();
}

absl::StatusOr<Topology> ParseTopology(const std::string& text, const std::string& source) {
  ASSIGN_OR_RETURN(const YamlNode root, ParseYaml(text, source));
  Topology topology;
  topology.source = source;
  RETURN_IF_ERROR(ReadTopology(root, {&topology.source, std::max(root.line, 1), ""}, &topology));
  RETURN_IF_ERROR(CheckTopology(&topology));
  return topology;
}

absl::StatusOr<Topology> LoadTopology(const std::string& path) {
  std::error_code error;
  if (!std::filesystem::is_regular_file(path, error)) {
    return absl::NotFoundError(absl::StrFormat("there is no topology file %s", path));
  }
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  if (!file) return absl::NotFoundError(absl::StrFormat("%s cannot be read", path));
  ASSIGN_OR_RETURN(Topology topology, ParseTopology(text.str(), path));
  const std::filesystem::path folder = std::filesystem::path(path).parent_path();
  for (ModelEntry& model : topology.models) model.path = (folder / model.path).string();
  if (topology.tls.given()) {
    for (std::string* pem : {&topology.tls.ca, &topology.tls.certificate, &topology.tls.key}) {
      *pem = (folder / *pem).string();
    }
  }
  RETURN_IF_ERROR(CheckModelFiles(topology));
  return topology;
}

}  // namespace packtrain

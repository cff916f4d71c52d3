#pragma once

// What is to be served where: a YAML topology, read and checked. Everything the user left out has
// its default or is absent, for the planner to fill in.

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/model/kv_layout.h"
#include "common/model/layer_range.h"
#include "common/rpc/tls_files.h"

namespace packtrain {

std::string FormatLayers(LayerRange layers);

struct HostEntry {
  std::string name;
  int line = 0;  // in the file, 0: from the command line
};

struct WorkerEntry {
  std::string host;    // one of the topology's hosts
  std::string device;  // "cpu", "cuda:N"
  WorkerRole role = WorkerRole::kStage;
  std::optional<LayerRange> layers;
  std::optional<LayerRange> resident_experts;  // of a stage; may be empty: none
  int threads = 0;                             // 0: one per physical core
  // Bytes that it may take of a GPU, 0: whatever there is. Several workers on one GPU all say it.
  uint64_t memory_bytes = 0;
  std::string address;  // "host:port" of a worker that runs already; empty: started here
  int line = 0;

  std::string device_name() const { return host + "/" + device; }
};

struct ModelEntry {
  std::string name;
  std::string role = "primary";  // or "sidecar"
  std::string path;              // of the first piece; relative ones are to the topology's folder
  int context = 0;               // positions of one sequence; 0: planned
  KvCacheType kv_cache = KvCacheType::kF16;
  bool thinking = false;
  int slots = 0;    // sequences that run at once, 0: planned
  int ubatch = 0;   // rows of one step: a prompt is computed in chunks of it; 0: planned
  int threads = 0;  // default of its workers
  std::vector<WorkerEntry> workers;  // none: all is planned
  int line = 0;
};

struct LinkEntry {
  std::string between[2];  // device names, "*" for any
  std::string transport;   // "shm", "grpc", "nccl"
  int line = 0;
};

struct Topology {
  std::string source;  // file name, for messages
  std::string listen_address = "127.0.0.1";
  int listen_port = 8001;
  std::vector<HostEntry> hosts;  // the first is this machine; empty: no other is named
  std::vector<ModelEntry> models;
  std::vector<LinkEntry> links;
  std::vector<std::string> api_keys;
  bool insecure = false;  // plain connections to workers beyond loopback are accepted
  TlsFiles tls;           // relative paths are to the topology's folder
  int tls_line = 0;
};

// Parses and checks all that can be known without the model files.
// Errors: INVALID_ARGUMENT, "source:line: key: value and what is allowed".
absl::StatusOr<Topology> ParseTopology(const std::string& text, const std::string& source);

// Reads a topology file; model paths are made absolute and must exist.
// Errors: as ParseTopology; NOT_FOUND naming a file that is missing.
absl::StatusOr<Topology> LoadTopology(const std::string& path);

// What entries say of each other: names, owners of layers and devices. Fills in hosts and threads
// that were left out. Errors: INVALID_ARGUMENT.
absl::Status CheckTopology(Topology* topology);

// Whether the model's files are there. Errors: NOT_FOUND.
absl::Status CheckModelFiles(const Topology& topology);

// Whether pinned layers fit a model of so many: in range, none twice, and what lies between them is
// enough for the stages that name none, and not too much. Errors: INVALID_ARGUMENT naming line and
// layers.
absl::Status CheckLayers(const Topology& topology, const ModelEntry& model, int num_layers);

// "127.0.0.1:8001", "[::1]:8001". Errors: INVALID_ARGUMENT with what is allowed.
absl::Status ParseAddress(const std::string& text, std::string* host, int* port);

absl::StatusOr<KvCacheType> ParseKvCacheType(const std::string& text);

}  // namespace packtrain

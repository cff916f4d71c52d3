#pragma once

// Who carries what: the planner's result and all that the fleet needs to start a deployment.
// Plain values. Layer ranges are half-open.

#include <cstdint>
#include <string>
#include <vector>

#include "common/model/bill.h"
#include "common/model/kv_layout.h"
#include "common/model/layer_range.h"
#include "common/rpc/tls_files.h"

namespace packtrain {

struct WorkerPlan {
  std::string name;     // unique in the deployment: "stage0", "experts0"
  std::string device;   // "cpu", "cuda:0"
  std::string address;  // HOST:PORT of a worker that runs already; empty: it is started here
  WorkerRole role = WorkerRole::kStage;
  int threads = 0;  // 0: one per physical core

  // Stages, in the plan in the order of their layers; the first embeds, the last has the head.
  LayerRange layers;
  LayerRange resident_experts;

  // Experts workers.
  std::vector<LayerRange> expert_layers;

  MemoryBill bill;  // of its device, as predicted
};

// What a worker holds once it has loaded, in bytes; 0: it has none, or does not tell.
struct WorkerMemory {
  uint64_t weights = 0, kv = 0, recurrent = 0, buffers = 0;  // of its device
  uint64_t process = 0;                                      // RAM of the process, all in all
};

// All links between two workers (by name, "*" for all) use this transport: "shm" or "grpc".
struct LinkPin {
  std::string from;
  std::string to;
  std::string transport;
};

struct DeploymentPlan {
  std::string name;        // of the deployment: "glm-5.2"
  std::string model_path;  // the first piece, the same path on every host
  int hidden_dim = 0;      // of the model: sizes of the hops to measure
  KvCacheType kv_cache = KvCacheType::kF16;
  int context_length = 0;
  int num_slots = 8;
  int num_pages = 0;
  int num_snapshots = 0;
  int max_tokens = 512;   // rows of one step
  int streamed_rows = 0;  // as in StreamsExperts
  std::vector<WorkerPlan> workers;
  std::vector<LinkPin> links;
  bool insecure = false;  // plain connections beyond loopback are allowed
  TlsFiles tls;           // for connections to other hosts
  int ordinal = 0;        // among the deployments served together
};

}  // namespace packtrain

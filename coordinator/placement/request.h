#pragma once

// What is asked of the planner: hardware, models, wishes and pins. Plain values.

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "common/config/rig.h"
#include "common/model/bill.h"
#include "common/model/layer_range.h"

namespace packtrain {

// A device of the rig: "box1", "cuda:0" or "cpu".
struct DeviceName {
  std::string host;
  std::string device;

  bool is_cpu() const { return device == "cpu"; }
  std::string text() const { return host + "/" + device; }
  bool operator==(const DeviceName&) const = default;
};

enum class WishedRole : uint8_t { kPlanned, kStage, kExperts };

// A worker that the user has listed; what is absent is planned.
struct WorkerWish {
  DeviceName device;
  WishedRole role = WishedRole::kPlanned;      // planned: stage on a GPU, experts on a CPU
  std::optional<LayerRange> layers;            // of a stage
  std::optional<LayerRange> resident_experts;  // of a stage; may be empty: none
  std::vector<LayerRange> experts;             // of an experts worker
  int threads = 0;                             // 0: one per core
  uint64_t memory = 0;                         // bytes of a GPU that it may take, 0: what there is
};

struct DeploymentWish {
  std::string name;
  std::string place;  // where it is asked for, in front of errors: "box.yaml:12: "
  std::string path;
  bool sidecar = false;
  const ModelFacts* model = nullptr;  // borrowed
  int context = 0;  // positions of one sequence, 0: what the model was trained with, at most 32768
  KvCacheType kv_cache = KvCacheType::kF16;
  int num_slots = 8;
  int least_slots = 8;  // a sidecar may get so few to fit its card whole
  int max_tokens = 0;   // rows of the largest ubatch, 0: planned
  bool mtp = false;     // run the model's multi-token prediction layer
  int threads = 0;      // of each CPU worker that is planned, 0: one per core
  // Speeds are also predicted behind so many positions, and of prompts of so many tokens.
  std::vector<int> depths = {512, 2048, 8192, 32768}, prompts = {512, 2048, 8192};
  std::vector<WorkerWish> workers;  // empty: all is planned
};

struct PlanRequest {
  Rig rig;
  std::vector<DeploymentWish> deployments;
};

}  // namespace packtrain

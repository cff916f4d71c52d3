#pragma once

// What the planner answers: an owner for every layer, a bill for every device, and how fast it
// should be. Plain values.

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "coordinator/placement/plan.h"
#include "coordinator/placement/request.h"

namespace packtrain {

struct ExpertsPart {
  int worker = 0;  // index into DeploymentPlacement::experts
  LayerRange layers;
};

struct StagePlacement {
  DeviceName device;
  LayerRange layers;            // the MTP layer, if it runs, is the last of the last stage
  LayerRange resident_experts;  // routed experts on the stage's own device
  std::vector<ExpertsPart> remote_experts;  // and those of its other MoE layers
  int threads = 0;
  int wish = -1;          // index of the wished worker that it is, -1: planned
  MemoryBill bill;        // of its device
  std::string transport;  // to the next stage, as expected before it is measured; empty: the last
};

struct ExpertsPlacement {
  DeviceName device;
  std::vector<LayerRange> layers;
  int threads = 0;
  int wish = -1;  // as of a stage
  MemoryBill bill = {};
};

// One term of a step's time.
struct SpeedTerm {
  std::string resource;  // "box1/cpu DRAM"
  std::string work;      // "8 of 256 experts of 53 layers"
  double bytes = 0;      // read or moved, 0: the time is a cost by itself
  double gb_per_s = 0;
  double ms = 0;
};

// Tokens per second behind so many positions, or of a prompt of so many tokens.
struct SpeedAt {
  int tokens = 0;
  double tokens_per_s = 0;
};

struct SpeedPrediction {
  double decode_ms = 0;  // one step of one stream
  double decode_tokens_per_s = 0;
  int decode_depth = 0;                 // positions already in the cache
  std::vector<SpeedTerm> decode_terms;  // add up to decode_ms
  std::string decode_bound;             // the resource of the largest term
  std::vector<SpeedAt> decode;          // at the depths that were asked for
  int prompt = 0;                       // tokens of the prompt that prefill is told for
  double prefill_tokens_per_s = 0;      // of that prompt alone, to its first token
  std::string prefill_bound;            // what is busy for most of that time
  std::vector<SpeedAt> prefill;         // of the prompts that were asked for
};

// How fast another choice would be: with or without a device.
struct Alternative {
  std::string choice;
  bool fits = false;
  double decode_tokens_per_s = 0;
  double prefill_tokens_per_s = 0;
};

struct DeploymentPlacement {
  std::string name;
  std::string path;
  bool sidecar = false;
  DeploymentShape shape;
  int context = 0;
  bool mtp = false;
  int num_layers = 0;  // placed ones
  std::vector<StagePlacement> stages;
  std::vector<ExpertsPlacement> experts;
  SpeedPrediction speed;
  std::vector<Alternative> alternatives;
  std::vector<std::string> notes;  // what a person should know
};

// One worker's share of a device.
struct DeviceUse {
  DeviceName device;
  std::string worker;  // "glm-5.2/stage0"
  MemoryBill bill;
  std::optional<WorkerMemory> actual = {};  // once it has loaded; with its device, not its host
};

struct DeviceTotal {
  DeviceName device;
  uint64_t capacity = 0;  // that plans may use
  uint64_t memory = 0;    // that it has, 0: not known
  std::vector<DeviceUse> uses;

  uint64_t used() const;
};

struct Placement {
  std::string rig;
  std::vector<DeploymentPlacement> deployments;  // as asked for
  std::vector<DeviceTotal> devices;              // all of the rig
};

}  // namespace packtrain

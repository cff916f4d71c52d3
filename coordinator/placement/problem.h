#pragma once

// One deployment's placement as numbers: candidate devices with rates and room, layers with bytes
// and times. The search looks for the assignment of least decode time; what the chosen one
// takes is counted by the same functions.

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "coordinator/placement/placement.h"
#include "coordinator/placement/request.h"
#include "coordinator/placement/weight_times.h"

namespace packtrain {

// What other deployments have taken, by the order of the rig's hosts and their GPUs.
struct Taken {
  std::vector<uint64_t> host;
  std::vector<std::vector<uint64_t>> gpu;
};

struct StageCandidate {
  DeviceName name;
  int host = 0;
  int gpu = -1;  // index into the host's GPUs, -1: the CPU
  DeviceKind kind = DeviceKind::kCpu;
  uint64_t capacity = 0;           // of a GPU; a CPU stage lives in its host's pool
  WeightTimes weights;             // of all but routed experts
  ExpertTimes experts;             // on the device
  double experts_seconds = 0;      // that a layer's routed experts take besides their bytes
  double read = 0;                 // bytes/s of memory
  double kernel_seconds = 0;       // GPU: what a kernel of a decode step costs besides its bytes
  double attention_flops = 0;      // per second, in long ubatches
  double attention_rows = 0;       // GPU: query rows of heads in flight at once
  double link = 0;                 // bytes/s to and from host memory
  double step_seconds = 0;         // of every decode step, besides its layers
  double head_seconds = 0;         // and if it has the head
  double exchange_seconds = 0;     // of asking for experts, without the bytes
  bool narrow = false;             // a link on which experts must not be waited for
  bool required = false;           // listed by the user
  bool experts_elsewhere = false;  // a CPU stage beside an experts worker
  std::optional<LayerRange> layers, resident;  // pins
  int wish = -1;                               // index into the wished workers, -1: planned
  int threads = 0;
};

struct ExpertsCandidate {
  DeviceName name;
  int host = 0;
  ExpertTimes experts;
  double layer_seconds = 0;        // that a layer takes besides its bytes
  std::vector<LayerRange> pinned;  // it serves exactly these
  int wish = -1;                   // as of a stage
  int threads = 0;
};

struct HostPool {
  uint64_t capacity = 0;
  double dram_read = 0;
};

// The part of a host's RAM and of a GPU's memory that plans may use. Memory that nobody has told
// the size of is no limit: the worker that has it checks.
uint64_t HostCapacity(const HostFacts& host);
uint64_t GpuCapacity(const GpuFacts& gpu);

// Running sums over layers, so that a range costs two look-ups: sum of [a, b) = at(b) - at(a).
class RunningSum {
 public:
  explicit RunningSum(const std::vector<double>& values);
  double Of(int first, int last) const {
    return sums_[static_cast<size_t>(last)] - sums_[static_cast<size_t>(first)];
  }

 private:
  std::vector<double> sums_;
};

// A stage as the search chooses it.
struct StageChoice {
  int candidate = 0;
  LayerRange layers;
  LayerRange resident;
  std::vector<ExpertsPart> parts;  // ranges in order; worker is an index into `experts`
};

struct Problem {
  const DeploymentWish* wish = nullptr;
  const ModelFacts* model = nullptr;
  const Rig* rig = nullptr;
  DeploymentShape shape;
  int context = 0;
  int num_layers = 0;  // with the MTP layer if it runs
  int first_moe = 0;
  bool nccl = false;  // may join stages: they are on several GPUs
  std::vector<StageCandidate> stages;
  std::vector<ExpertsCandidate> experts;
  std::vector<HostPool> hosts;
  std::vector<int> forced;  // by layer: the experts worker that its pins name, -1: none

  // Bytes of a stage without its layers, by device kind and DutyBits.
  std::vector<uint64_t> base_device[2], base_host[2];

  // By layer.
  std::vector<RunningSum> fixed_bytes;                  // by DeviceKind
  std::vector<RunningSum> expert_bytes;                 // one
  double ring_bytes = 0;                                // of experts on their way to a GPU
  std::vector<std::vector<RunningSum>> remote_seconds;  // [stage][experts worker], decode
  std::vector<RunningSum> resident_seconds;             // [stage], decode, with the shared expert
  std::vector<RunningSum> own_seconds;                  // [stage], decode, all else
  // And of a full ubatch.
  std::vector<RunningSum> own_prefill, expert_prefill;  // [stage]: without routed experts; those
  std::vector<RunningSum> worker_prefill;               // [experts worker]
};

// What a stage of a choice takes: of its device (CPU: of its host) and of all hosts' RAM.
struct StageNeed {
  uint64_t device = 0;
  std::vector<uint64_t> host;
};

// Errors: INVALID_ARGUMENT for wishes that contradict the rig or the model.
absl::StatusOr<Problem> BuildProblem(const Rig& rig, const DeploymentWish& wish, const Taken& taken,
                                     int max_tokens);

StageDuties DutiesOf(const Problem& problem, const StageChoice& choice);
StageNeed NeedOf(const Problem& problem, const StageChoice& choice);
uint64_t DeviceNeedOf(const Problem& problem, const StageChoice& choice);
double ExpertsBytesOf(const Problem& problem, const LayerRange& range);
// The deployment as an experts worker sees it: a stage on its host's GPUs computes long ubatches
// itself. `served`: indices of the stages' candidates.
DeploymentShape ExpertsShape(const Problem& problem, const ExpertsCandidate& experts,
                             const std::vector<int>& served);
// RAM of experts workers without their experts.
std::vector<uint64_t> ExpertsBaseNeed(const Problem& problem);

}  // namespace packtrain

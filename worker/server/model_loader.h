#pragma once

// What a Load message asks a device for, and what the device answers with.

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "worker/engine/engine.h"
#include "worker/engine/experts.h"
#include "worker/engine/stage.h"

namespace packtrain {

struct ExpertsSpec {
  std::vector<std::pair<int, int>> layers;  // half-open
  int max_tokens = 0;                       // rows of one request
  int streamed_rows = 0;                    // as in StreamsExperts
};

struct LoadRequest {
  std::string device;  // "cpu", "cuda:0"
  std::string model_path;
  std::optional<StageSpec> stage;      // exactly one
  std::optional<ExpertsSpec> experts;  // of the two
  int threads = 0;                     // 0: one per hardware thread the process may use
  int segment_fd = -1;                 // borrowed; -1: the loader creates the segment
  int spin_us = 0;                     // how long an idle thread may spin before it sleeps
  std::optional<int> turn_cpu;         // as in TurnCpu
  struct ExpertsSegment {
    int fd = -1;                              // borrowed
    std::vector<std::pair<int, int>> layers;  // that it holds, half-open
  };
  std::vector<ExpertsSegment> experts_segments;  // finished, of the stage's experts workers
};

struct LoadedModel {
  std::shared_ptr<void> owner;  // of whatever stage and experts refer to; last to go
  std::unique_ptr<Stage> stage;
  std::unique_ptr<ExpertsBackend> experts;
  SamplingFunctions sampling;  // of a stage with the head
  StageMemory memory;
  int hidden_dim = 0;
  int vocab_size = 0;
  int selection_dim = 0;  // indices per row that a hop may carry
  int expert_top_k = 0;   // 0: the model has no routed experts
};

// `experts` (borrowed, outlives the stage) serves the layers that are not resident.
using ModelLoader = std::function<absl::StatusOr<LoadedModel>(
    const LoadRequest& request, ExpertsClient* experts, const LoadProgress& progress)>;

}  // namespace packtrain

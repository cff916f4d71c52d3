#pragma once

// What the scheduler drives: the workers of one deployment as one pipeline of stages.

#include <cstdint>
#include <functional>
#include <vector>

#include "absl/status/status.h"
#include "common/model/step.h"

namespace packtrain {

// The capacity of the tightest stage, known once all workers have loaded.
struct PipelineLimits {
  int num_stages = 1;
  int num_slots = 8;
  int num_pages = 0;
  int num_snapshots = 0;   // 0: the model has no recurrent state
  int max_tokens = 512;    // rows of one step
  int context_length = 0;  // positions of one sequence
};

class Pipeline {
 public:
  virtual ~Pipeline() = default;
  virtual PipelineLimits limits() const = 0;
  // Sends steps to all stages without waiting; results come through the callback in step order,
  // from a thread of the pipeline's. Submit after a failure fails the same way at once.
  virtual void Submit(std::vector<Step> steps) = 0;
  // Set once before the first Submit. Called for every submitted step exactly once.
  virtual void SetResultCallback(std::function<void(StepResult)> callback) = 0;
};

}  // namespace packtrain

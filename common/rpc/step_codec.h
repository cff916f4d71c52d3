#pragma once

// Steps and their results between memory and wire. Decoding treats its input as hostile.

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/model/step.h"

namespace packtrain::v1 {
class Step;
class StepResult;
}  // namespace packtrain::v1

namespace packtrain {

// What a decoded step may refer to.
struct StepLimits {
  int num_slots = 0;
  int num_pages = 0;
  int num_snapshots = 0;
  int max_tokens = 0;  // rows of one step
  int vocab_size = 0;
};

void EncodeStep(const Step& step, v1::Step* out);
// Errors: INVALID_ARGUMENT naming step, slot, field, value and limit.
absl::StatusOr<Step> DecodeStep(const v1::Step& in, const StepLimits& limits);

void EncodeStepResult(const StepResult& result, v1::StepResult* out);
StepResult DecodeStepResult(const v1::StepResult& in);

}  // namespace packtrain

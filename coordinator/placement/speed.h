#pragma once

// How long the stages of a problem take: what the search compares, and what is then promised.

#include <string>
#include <vector>

#include "coordinator/placement/placement.h"
#include "coordinator/placement/problem.h"

namespace packtrain {

// Seconds of a one-stream decode step that this stage takes, and of one full ubatch of prefill.
double DecodeSeconds(const Problem& problem, const StageChoice& choice);
double PrefillSeconds(const Problem& problem, const StageChoice& choice);

struct Hop {
  std::string transport;
  double decode_seconds = 0;
  double prefill_seconds = 0;
};
// From one stage to the next, cut in front of layer `cut`.
Hop HopBetween(const Problem& problem, int from, int to, int cut);

SpeedPrediction Predict(const Problem& problem, const std::vector<StageChoice>& stages);

}  // namespace packtrain

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
// Seconds from a prompt of so many tokens to its first token, alone in the pipeline.
double PromptSeconds(const Problem& problem, const std::vector<StageChoice>& stages, int prompt);
// Of the request that plans are made for: its prompt in tokens; seconds with all it generates.
int PlannedPrompt(const Problem& problem);
double RequestSeconds(const Problem& problem, const std::vector<StageChoice>& stages);

struct Hop {
  std::string transport;
  double latency = 0;      // seconds
  double row_seconds = 0;  // of each row besides

  double Seconds(int rows) const { return latency + rows * row_seconds; }
};
// From one stage to the next, cut in front of layer `cut`.
Hop HopBetween(const Problem& problem, int from, int to, int cut);

SpeedPrediction Predict(const Problem& problem, const std::vector<StageChoice>& stages);

}  // namespace packtrain

#pragma once

// How long one layer keeps a device busy: in a decode step of one stream, and in a ubatch of a
// prompt. Seconds, from the rates of the problem's candidates and the model's bytes and operations.

#include "coordinator/placement/problem.h"

namespace packtrain {

// Decode, with `depth` positions in the cache. Everything but routed and shared experts.
double OwnDecodeSeconds(const Problem& problem, const StageCandidate& stage, int layer, int depth);
// Shared and routed experts on the stage's own device.
double ResidentDecodeSeconds(const Problem& problem, const StageCandidate& stage, int layer);
// The same with the routed ones asked of an experts worker, while a GPU computes the shared one.
double RemoteDecodeSeconds(const Problem& problem, const StageCandidate& stage,
                           const ExpertsCandidate& experts, int layer);

// Rows of a prompt that are computed at once, and the positions in front of them.
struct PromptChunk {
  int rows = 0;
  int depth = 0;
};
// Everything but routed experts.
double OwnPrefillSeconds(const Problem& problem, const StageCandidate& stage, int layer,
                         const PromptChunk& chunk);
// Routed experts, on a device with these rates.
double ExpertsPrefillSeconds(const Problem& problem, const ExpertTimes& experts, int layer,
                             int rows);

}  // namespace packtrain

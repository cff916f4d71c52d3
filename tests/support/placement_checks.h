#pragma once

// Random rigs and models for the planner's tests, and a recount of a plan that shares no code with
// the planner's own sums.

#include <cstdint>
#include <map>
#include <random>
#include <string>

#include "coordinator/placement/placement.h"
#include "coordinator/placement/request.h"

namespace packtrain {

using TestRng = std::mt19937_64;

// A whole number of low .. high. (The library's distributions differ between implementations.)
int Pick(TestRng* rng, int low, int high);

// GLM-5.2 in its real shapes with experts of `expert_bits` per weight; `layers` of the trunk.
ModelFacts GlmLikeModel(int layers, bool mtp, double expert_bits);
// A random model of one of four kinds (latent attention with and without indexer, grouped-query,
// Gated DeltaNet), up to `max_layers`; experts differ from layer to layer.
ModelFacts RandomModel(TestRng* rng, int max_layers);
// A random rig; GPUs and RAM are sized around the model, so that fits and refusals both happen.
Rig RandomRig(TestRng* rng, const ModelFacts& model, int max_hosts, int max_gpus);

GpuFacts TestGpu(int index, double memory_gib, double read, double link);
HostFacts TestHost(const std::string& name, int cores, double memory_gib, double dram_read);

// Bytes by device ("box1/cuda:0") that the plan's workers need, recounted layer by layer.
std::map<std::string, uint64_t> Recount(const PlanRequest& request, const Placement& placement);

// What is wrong with a plan: a layer without an owner or with two, a pin not kept, a device over
// its memory, a bill that differs from the recount. Empty: nothing.
std::string PlanFault(const PlanRequest& request, const Placement& placement);

}  // namespace packtrain

#pragma once

#include "worker/engine/engine.h"

namespace packtrain {

// Sampling on the host with worker/ops' Sampler. The functions share its scratch memory: one
// thread.
SamplingFunctions MakeSampling();

}  // namespace packtrain

#pragma once

#include "worker/kernels/cuda/device.cuh"

namespace packtrain::cuda {

// Sequences of up to so many rows in a ubatch go token by token, longer ones in chunks.
constexpr int kDeltaChunk = 64;

// The longer sequences of DeltaNet, after convolution and normalisation.
int DeltaNetChunks(const DeltaNetArgs& args, int channels, Stream stream);

// log(decay) of a token.
__device__ inline float LogDecay(float a, float alpha, float dt) {
  float x = alpha + dt;
  return a * (x > 20.0f ? x : log1pf(expf(x)));
}

}  // namespace packtrain::cuda

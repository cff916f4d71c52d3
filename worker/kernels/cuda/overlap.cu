#include "worker/kernels/cuda/device.cuh"

namespace packtrain::cuda {
namespace {

__global__ void ProbeKernel() {}

}  // namespace

// The driver may have compiled the kernels from code for an older architecture, in which they wait
// for nothing: what they were compiled from counts, not the device.
bool LaunchesOverlap() {
  static const bool overlap = [] {
    cudaFuncAttributes attributes = {};
    return cudaFuncGetAttributes(&attributes, ProbeKernel) == cudaSuccess &&
           attributes.ptxVersion >= 90;
  }();
  return overlap;
}

}  // namespace packtrain::cuda

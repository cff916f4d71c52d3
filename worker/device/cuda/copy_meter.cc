#include "worker/device/cuda/copy_meter.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <vector>

#include "common/base/status_macros.h"
#include "worker/device/cuda/cuda_memory.h"

namespace packtrain {
namespace {

absl::Status Trip(std::byte* device, std::byte* pinned, std::vector<std::byte>* bundle,
                  cudaStream_t stream) {
  const size_t bytes = bundle->size();
  RETURN_IF_CUDA(cudaMemcpyAsync(pinned, device, bytes, cudaMemcpyDeviceToHost, stream));
  RETURN_IF_CUDA(cudaStreamSynchronize(stream));
  std::memcpy(bundle->data(), pinned, bytes);
  std::memcpy(pinned, bundle->data(), bytes);
  RETURN_IF_CUDA(cudaMemcpyAsync(device, pinned, bytes, cudaMemcpyHostToDevice, stream));
  RETURN_IF_CUDA(cudaStreamSynchronize(stream));
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<double> MeasureCopies(int device, size_t bytes) {
  using Clock = std::chrono::steady_clock;
  constexpr int kTrips = 9;
  RETURN_IF_CUDA(cudaSetDevice(device));
  DevicePlan memory;
  std::byte* on_device = nullptr;
  memory.Add(&on_device, bytes);
  RETURN_IF_ERROR(memory.Allocate("measuring copies", false));
  ASSIGN_OR_RETURN(const auto pinned, PinnedMemory::Allocate(bytes));
  std::vector<std::byte> bundle(bytes);
  cudaStream_t stream = nullptr;
  RETURN_IF_CUDA(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  std::vector<double> times;
  absl::Status status;
  for (int i = 0; i < kTrips && status.ok(); ++i) {
    const Clock::time_point begin = Clock::now();
    status = Trip(on_device, pinned->data(), &bundle, stream);
    times.push_back(std::chrono::duration<double, std::micro>(Clock::now() - begin).count());
  }
  cudaStreamDestroy(stream);
  RETURN_IF_ERROR(status);
  std::nth_element(times.begin(), times.begin() + kTrips / 2, times.end());
  return times[kTrips / 2];
}

}  // namespace packtrain

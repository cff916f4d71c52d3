#include "worker/device/cuda/cuda_memory.h"

#include <cuda_runtime_api.h>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/base/status_macros.h"

namespace packtrain {

absl::Status CudaStatus(int code, std::string_view what) {
  if (code == 0) return absl::OkStatus();
  return absl::InternalError(
      absl::StrCat("CUDA: ", cudaGetErrorString(static_cast<cudaError_t>(code)), " in ",
                   absl::string_view(what.data(), what.size())));
}

DevicePlan::~DevicePlan() { cudaFree(memory_); }

void DevicePlan::AddBytes(void** pointer, size_t bytes) {
  entries_.push_back({pointer, bytes_});
  bytes_ += (bytes + 16 + 255) / 256 * 256;
}

absl::Status DevicePlan::Allocate(std::string_view purpose, bool zero) {
  if (bytes_ == 0) return absl::OkStatus();
  if (const cudaError_t code = cudaMalloc(&memory_, bytes_); code != cudaSuccess) {
    static_cast<void>(cudaGetLastError());
    memory_ = nullptr;
    size_t free = 0, total = 0;
    static_cast<void>(cudaMemGetInfo(&free, &total));
    return absl::ResourceExhaustedError(absl::StrFormat("the GPU has %d MiB free, %s needs %d MiB",
                                                        free >> 20, purpose, bytes_ >> 20));
  }
  if (zero) {
    RETURN_IF_CUDA(cudaMemset(memory_, 0, bytes_));
    // Streams that do not block do not wait for it.
    RETURN_IF_CUDA(cudaStreamSynchronize(nullptr));
  }
  for (const Entry& entry : entries_)
    *entry.pointer = static_cast<std::byte*>(memory_) + entry.offset;
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<PinnedMemory>> PinnedMemory::Allocate(size_t bytes) {
  void* data = nullptr;
  RETURN_IF_CUDA(cudaMallocHost(&data, bytes == 0 ? 1 : bytes));
  return std::unique_ptr<PinnedMemory>(new PinnedMemory(static_cast<std::byte*>(data), bytes));
}

PinnedMemory::~PinnedMemory() { cudaFreeHost(data_); }

}  // namespace packtrain

#include "worker/device/cuda/cuda_run.h"

#include <cuda_runtime_api.h>

#include <utility>

namespace packtrain {

DeviceActivations CudaRun::TakeActivations(int n_rows, int n) {
  const auto count = static_cast<size_t>(n_rows) * static_cast<size_t>(n);
  DeviceActivations x{.rows = n_rows, .n = n, .f32 = Take<float>(count)};
  if (n % 32 != 0) return x;
  if (decode()) {
    x.q8 = Take<uint8_t>(static_cast<size_t>(n_rows) * cuda::Q8RowBytes(static_cast<size_t>(n)));
  } else {
    x.bf16 = Take<uint16_t>(count);
  }
  return x;
}

void CudaRun::OnHost(std::function<absl::Status()> call) {
  if (measuring || !status.ok()) return;
  status = recording != nullptr ? recording->Call(std::move(call)) : call();
}

void CudaRun::BeginBranch() {
  if (!decode()) return;
  LAUNCH(this, cudaEventRecord(branch_begin, stream));
  LAUNCH(this, cudaStreamWaitEvent(branch, branch_begin, 0));
  std::swap(stream, branch);
}

void CudaRun::EndBranch() {
  if (!decode()) return;
  LAUNCH(this, cudaEventRecord(branch_end, stream));
  std::swap(stream, branch);
}

void CudaRun::JoinBranch() {
  if (decode()) LAUNCH(this, cudaStreamWaitEvent(stream, branch_end, 0));
}

}  // namespace packtrain

#include "worker/device/cuda/cuda_run.h"

#include <cuda_runtime_api.h>

#include <utility>

namespace packtrain {

namespace {

// Of the device's arrays that hold one entry per row of the ubatch.
void MoveRows(CudaRun* run, int by) {
  run->batch.positions += by;
  run->batch.table_offset += by;
  run->cos_sin += int64_t{by} * run->config.rope.dims;
  run->selection += int64_t{by} * run->config.indexer.top_k;
}

}  // namespace

DeviceActivations DeviceActivations::Rows(int first, int count) const {
  DeviceActivations part = *this;
  const auto offset = static_cast<size_t>(first) * static_cast<size_t>(n);
  part.rows = count;
  if (f32 != nullptr) part.f32 += offset;
  if (q8 != nullptr) {
    part.q8 += static_cast<size_t>(first) * cuda::Q8RowBytes(static_cast<size_t>(n));
  }
  if (bf16 != nullptr) part.bf16 += offset;
  return part;
}

RowWindow::RowWindow(CudaRun* run, int first, int rows)
    : run_(run), first_(first), all_rows_(run->rows) {
  run_->rows = rows;
  MoveRows(run_, first_);
}

RowWindow::~RowWindow() {
  run_->rows = all_rows_;
  MoveRows(run_, -first_);
}

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

DeviceActivations CudaRun::TakeInput(int n_rows, const DeviceMatrix& reader) {
  if (decode() || !ReadsBf16(reader)) return TakeActivations(n_rows, reader.cols);
  const auto count = static_cast<size_t>(n_rows) * static_cast<size_t>(reader.cols);
  return {.rows = n_rows, .n = reader.cols, .bf16 = Take<uint16_t>(count)};
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

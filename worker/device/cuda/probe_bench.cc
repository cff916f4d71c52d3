#include "worker/device/cuda/probe_bench.h"

#include <algorithm>
#include <random>
#include <vector>

#include "common/base/status_macros.h"
#include "worker/device/cuda/cuda_recording.h"

namespace packtrain {
namespace {

constexpr int kRounds = 5;

}  // namespace

ProbeBench::~ProbeBench() {
  for (cudaEvent_t event : {begin_, end_}) {
    if (event != nullptr) cudaEventDestroy(event);
  }
  if (run.stream != nullptr) cudaStreamDestroy(run.stream);
}

absl::Status ProbeBench::Open() {
  RETURN_IF_CUDA(cudaStreamCreateWithFlags(&run.stream, cudaStreamNonBlocking));
  RETURN_IF_CUDA(cudaEventCreate(&begin_));
  RETURN_IF_CUDA(cudaEventCreate(&end_));
  RETURN_IF_CUDA(cuda::PrepareDevice());
  // The widest type of a token's product: one result per row.
  const size_t most_rows = kWeightBytes / (kColumns / 8);
  run.unpacked_capacity = size_t{kRows} * kColumns;
  memory_.Add(&weights, kWeightBytes);
  memory_.Add(&sink, 1);
  memory_.Add(&y, std::max(most_rows, size_t{kRows} * kManyTokens));
  memory_.Add(&run.unpacked, run.unpacked_capacity);
  many = {.rows = kManyTokens, .n = kColumns};
  one = {.rows = 1, .n = kColumns};
  memory_.Add(&many.f32, size_t{kManyTokens} * kColumns);
  memory_.Add(&many.bf16, size_t{kManyTokens} * kColumns);
  memory_.Add(&one.q8, cuda::Q8RowBytes(kColumns));
  RETURN_IF_ERROR(memory_.Allocate("measuring", true));
  one.f32 = many.f32;
  // Scales of all types are then ordinary numbers.
  std::minstd_rand random(1);
  ASSIGN_OR_RETURN(host, PinnedMemory::Allocate(kCopyBytes));
  for (size_t i = 0; i < kCopyBytes; ++i) {
    host->data()[i] = static_cast<std::byte>(((random() >> 8) & 0xbf) | 4);
  }
  for (size_t at = 0; at < kWeightBytes; at += kCopyBytes) {
    RETURN_IF_CUDA(cudaMemcpy(weights + at, host->data(), kCopyBytes, cudaMemcpyHostToDevice));
  }
  // Random too: products of equal numbers take less power, and so less time.
  constexpr size_t kValues = size_t{kManyTokens} * kColumns;
  std::uniform_real_distribution<float> value(-1, 1);
  std::vector<float> values(kValues);
  for (float& v : values) v = value(random);
  RETURN_IF_CUDA(
      cudaMemcpy(many.f32, values.data(), kValues * sizeof(float), cudaMemcpyHostToDevice));
  RETURN_IF_CUDA(
      cuda::Convert(many.f32, kManyTokens, kColumns, kColumns, {.bf16 = many.bf16}, run.stream));
  RETURN_IF_CUDA(cuda::Convert(many.f32, 1, kColumns, kColumns, {.q8 = one.q8}, run.stream));
  return Wait();
}

absl::Status ProbeBench::Wait() {
  RETURN_IF_ERROR(run.status);
  RETURN_IF_CUDA(cudaStreamSynchronize(run.stream));
  return absl::OkStatus();
}

absl::StatusOr<double> ProbeBench::Time(const std::function<int()>& enqueue) {
  float best = 0;
  for (int i = 0; i <= kRounds; ++i) {
    RETURN_IF_CUDA(cudaEventRecord(begin_, run.stream));
    RETURN_IF_CUDA(enqueue());
    RETURN_IF_CUDA(cudaEventRecord(end_, run.stream));
    RETURN_IF_ERROR(Wait());
    float ms = 0;
    RETURN_IF_CUDA(cudaEventElapsedTime(&ms, begin_, end_));
    if (i == 1 || (i > 1 && ms < best)) best = ms;
  }
  return std::max(best, 1e-6F) * 1e-3;
}

absl::StatusOr<double> ProbeBench::TimeRecorded(const std::function<void()>& enqueue) {
  CudaRecording recording;
  RETURN_IF_ERROR(recording.Begin(run.stream));
  enqueue();
  RETURN_IF_ERROR(recording.End());
  absl::Status status = run.status;
  RETURN_IF_ERROR(status);
  ASSIGN_OR_RETURN(const double seconds, Time([&] {
                     status.Update(recording.Replay(run.stream));
                     return 0;
                   }));
  RETURN_IF_ERROR(status);
  return seconds;
}

}  // namespace packtrain

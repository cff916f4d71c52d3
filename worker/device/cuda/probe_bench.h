#pragma once

// Memory, streams and clocks with which a GPU is measured.

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/model/config.h"
#include "worker/device/cuda/cuda_memory.h"
#include "worker/device/cuda/cuda_run.h"

namespace packtrain {

class ProbeBench {
  const ModelConfig config_;  // of nothing, in front of `run`, which refers to it

 public:
  // Far more than any L2 holds.
  static constexpr size_t kWeightBytes = size_t{512} << 20;
  static constexpr size_t kCopyBytes = size_t{128} << 20;
  static constexpr int kColumns = 6144;
  static constexpr int kRows = 8192;  // of weights in a product with many tokens
  static constexpr int kManyTokens = 1024;

  ProbeBench() = default;
  ~ProbeBench();
  ProbeBench(const ProbeBench&) = delete;
  ProbeBench& operator=(const ProbeBench&) = delete;

  // Once, first. Errors: RESOURCE_EXHAUSTED, INTERNAL.
  absl::Status Open();
  // Until all that was enqueued is done.
  absl::Status Wait();
  // Least seconds of what `enqueue` puts on the stream; the first round warms up.
  absl::StatusOr<double> Time(const std::function<int()>& enqueue);
  // The same as a graph.
  absl::StatusOr<double> TimeRecorded(const std::function<void()>& enqueue);

  CudaRun run{config_};
  std::unique_ptr<PinnedMemory> host;  // kCopyBytes
  uint8_t* weights = nullptr;          // kWeightBytes whose scales of every type are numbers
  uint32_t* sink = nullptr;
  float* y = nullptr;           // room for any product of kColumns, and of kManyTokens with kRows
  DeviceActivations many, one;  // random, of kColumns values

 private:
  DevicePlan memory_;
  cudaEvent_t begin_ = nullptr, end_ = nullptr;
};

}  // namespace packtrain

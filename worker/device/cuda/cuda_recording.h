#pragma once

// Work on a stream, recorded once and replayed with few calls.

#include <functional>
#include <vector>

#include "absl/status/status.h"
#include "worker/kernels/cuda/kernels.h"

struct CUgraphExec_st;

namespace packtrain {

// CUDA graphs with calls on the host between them. Addresses and grids are those of the recording;
// what differs from one replay to the next must lie in the memory that the kernels read. Not
// thread-safe.
class CudaRecording {
 public:
  CudaRecording() = default;
  ~CudaRecording();
  CudaRecording(const CudaRecording&) = delete;
  CudaRecording& operator=(const CudaRecording&) = delete;

  // From here to End, what is enqueued on `stream` is kept instead of run.
  absl::Status Begin(cuda::Stream stream);
  // `call` follows, on the host, what has been enqueued; it does not wait for it.
  absl::Status Call(std::function<absl::Status()> call);
  // Also after an error: takes the stream out of recording.
  absl::Status End();

  // Enqueues everything, stopping at a call that fails.
  absl::Status Replay(cuda::Stream stream) const;
  // Kernels and copies in it.
  int nodes() const { return nodes_; }

 private:
  struct Segment {
    CUgraphExec_st* graph = nullptr;  // null: nothing was enqueued
    std::function<absl::Status()> call;
  };
  cuda::Stream stream_ = nullptr;
  std::vector<Segment> segments_;
  int nodes_ = 0;
};

}  // namespace packtrain

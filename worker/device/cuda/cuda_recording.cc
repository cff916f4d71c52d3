#include "worker/device/cuda/cuda_recording.h"

#include <cuda_runtime_api.h>

#include <utility>

#include "common/base/status_macros.h"
#include "worker/device/cuda/cuda_memory.h"

namespace packtrain {

CudaRecording::~CudaRecording() {
  for (const Segment& segment : segments_) {
    if (segment.graph != nullptr) cudaGraphExecDestroy(segment.graph);
  }
}

absl::Status CudaRecording::Begin(cuda::Stream stream) {
  stream_ = stream;
  RETURN_IF_CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  return absl::OkStatus();
}

absl::Status CudaRecording::End() {
  cudaGraph_t graph = nullptr;
  RETURN_IF_CUDA(cudaStreamEndCapture(stream_, &graph));
  size_t nodes = 0;
  int code = cudaGraphGetNodes(graph, nullptr, &nodes);
  nodes_ += static_cast<int>(nodes);
  Segment& segment = segments_.emplace_back();
  if (code == 0 && nodes > 0) code = cudaGraphInstantiate(&segment.graph, graph, 0);
  cudaGraphDestroy(graph);
  return CudaStatus(code, "cudaGraphInstantiate");
}

absl::Status CudaRecording::Call(std::function<absl::Status()> call) {
  RETURN_IF_ERROR(End());
  segments_.back().call = std::move(call);
  return Begin(stream_);
}

absl::Status CudaRecording::Replay(cuda::Stream stream) const {
  for (const Segment& segment : segments_) {
    if (segment.graph != nullptr) RETURN_IF_CUDA(cudaGraphLaunch(segment.graph, stream));
    if (segment.call) RETURN_IF_ERROR(segment.call());
  }
  return absl::OkStatus();
}

}  // namespace packtrain

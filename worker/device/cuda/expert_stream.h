#pragma once

// Streams experts that stay in host memory through a ring of device memory, for ubatches so large
// that a GPU finishes sooner even after copying every expert of a layer. The order of a stage's
// products is known before it runs, so copies run ahead of them, also across layers, as far as the
// ring allows; the source is registered with CUDA and the copies need no host thread.

#include <cstddef>
#include <cstdint>
#include <map>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "common/model/config.h"
#include "worker/device/cuda/cuda_memory.h"
#include "worker/device/cuda/cuda_run.h"
#include "worker/device/cuda/cuda_weights.h"

struct CUevent_st;

namespace packtrain {

class ExpertStream {
 public:
  // Matrices of experts [first, first + count) of one tensor, dense, one behind the other.
  struct Piece {
    const uint8_t* data = nullptr;
    int first = 0;
    int count = 0;
  };

  explicit ExpertStream(const ModelConfig& config) : config_(config) {}
  ~ExpertStream();
  ExpertStream(const ExpertStream&) = delete;
  ExpertStream& operator=(const ExpertStream&) = delete;

  // In ascending order of layers. `experts` is in page-aligned, mapped memory that outlives this.
  // Layers whose types have no tensor-core product are left out.
  void Add(int layer, const ExpertWeights& experts);
  bool empty() const { return layers_.empty(); }
  // Adds the ring, for ubatches of at most so many rows.
  void Plan(int max_tokens, DevicePlan* buffers);
  // Registers the experts with CUDA: about 0.1 s per GB. Errors: INTERNAL with CUDA's words.
  absl::Status Open();

  // Null if the layer is not streamed. The matrices have no addresses: Acquire gives them.
  const DeviceExperts* Find(int layer) const;

  // A ubatch begins whose layers take all pieces in order: per layer gate, up, down. Whatever an
  // earlier one left behind is dropped; nothing of it may still run on the stage's stream.
  void Begin(CudaRun* run);
  // The next piece; work that is enqueued behind this on the run's stream finds it there.
  Piece Acquire(CudaRun* run);
  // What was enqueued so far is the last to read the piece.
  void Release(CudaRun* run);

 private:
  // `rows` runs of `row_bytes`, `pitch` bytes apart.
  struct Copy {
    const std::byte* from;
    size_t row_bytes, pitch, rows;
    int first, count;  // experts
  };
  struct Slot {
    uint8_t* data = nullptr;
    CUevent_st* filled = nullptr;
    CUevent_st* free = nullptr;
  };
  void AddMatrix(const MatrixView& view, size_t rows, size_t row_stride, size_t num_experts,
                 DeviceMatrix* target);
  void Enqueue(CudaRun* run, size_t index);

  const ModelConfig& config_;
  std::map<int, DeviceExperts> layers_;
  std::vector<Copy> copies_;
  std::vector<Slot> slots_;
  size_t slot_bytes_ = 0;
  size_t next_ = 0;  // of copies_
  cuda::Stream stream_ = nullptr;
  std::vector<std::pair<uintptr_t, uintptr_t>> registered_;
};

}  // namespace packtrain

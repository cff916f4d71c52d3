#include "worker/device/cuda/expert_stream.h"

#include <cuda_runtime_api.h>
#include <unistd.h>

#include <algorithm>

#include "absl/strings/str_format.h"
#include "common/base/check.h"
#include "common/base/status_macros.h"
#include "common/model/buffers.h"

namespace packtrain {
ExpertStream::~ExpertStream() {
  if (stream_ != nullptr) {
    cudaStreamSynchronize(stream_);
    cudaStreamDestroy(stream_);
  }
  for (const Slot& slot : slots_) {
    if (slot.filled != nullptr) cudaEventDestroy(slot.filled);
    if (slot.free != nullptr) cudaEventDestroy(slot.free);
  }
  for (const auto& [begin, end] : registered_) {
    cudaHostUnregister(reinterpret_cast<void*>(begin));
  }
}

void ExpertStream::Add(int layer, const ExpertWeights& experts) {
  const auto groupable = [](const MatrixView& m) {
    return cuda::FindWeightKernels(m.type) != nullptr && m.type != TensorType::kF32;
  };
  if (!groupable(experts.gate) || !groupable(experts.up) || !groupable(experts.down) ||
      experts.expert_dim % 32 != 0 || config_.hidden_dim % 32 != 0) {
    return;
  }
  DeviceExperts& target = layers_[layer];
  target.num_experts = static_cast<int>(experts.num_experts);
  target.expert_dim = static_cast<int>(experts.expert_dim);
  target.row_stride = target.expert_dim;
  const auto hidden = static_cast<size_t>(config_.hidden_dim);
  AddMatrix(experts.gate, experts.expert_dim, experts.row_stride, experts.num_experts,
            &target.ffn.gate);
  AddMatrix(experts.up, experts.expert_dim, experts.row_stride, experts.num_experts,
            &target.ffn.up);
  AddMatrix(experts.down, hidden, hidden, experts.num_experts, &target.ffn.down);
}

void ExpertStream::AddMatrix(const MatrixView& view, size_t rows, size_t row_stride,
                             size_t num_experts, DeviceMatrix* target) {
  target->kernels = cuda::FindWeightKernels(view.type);
  target->rows = static_cast<int>(num_experts * rows);
  target->cols = static_cast<int>(view.cols);
  const size_t expert = rows * view.row_bytes(), pitch = row_stride * view.row_bytes();
  const size_t fit = std::clamp<size_t>(kExpertPieceBytes / expert, 1, num_experts);
  for (size_t first = 0; first < num_experts; first += fit) {
    const size_t count = std::min(fit, num_experts - first);
    copies_.push_back({view.data + first * pitch, expert, pitch, count, static_cast<int>(first),
                       static_cast<int>(count)});
    slot_bytes_ = std::max(slot_bytes_, count * expert);
  }
}

void ExpertStream::Plan(int max_tokens, DevicePlan* buffers) {
  slots_.resize(static_cast<size_t>(ExpertRingSlots(max_tokens)));
  for (Slot& slot : slots_) buffers->Add(&slot.data, slot_bytes_);
}

absl::Status ExpertStream::Open() {
  RETURN_IF_CUDA(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
  for (Slot& slot : slots_) {
    RETURN_IF_CUDA(cudaEventCreateWithFlags(&slot.filled, cudaEventDisableTiming));
    RETURN_IF_CUDA(cudaEventCreateWithFlags(&slot.free, cudaEventDisableTiming));
  }
  // Whole pages; neighbours share some, and a page can be registered once.
  const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  std::vector<std::pair<uintptr_t, uintptr_t>> ranges, merged;
  for (const Copy& copy : copies_) {
    const auto from = reinterpret_cast<uintptr_t>(copy.from);
    const size_t bytes = (copy.rows - 1) * copy.pitch + copy.row_bytes;
    ranges.emplace_back(from / page * page, (from + bytes + page - 1) / page * page);
  }
  std::sort(ranges.begin(), ranges.end());
  for (const auto& range : ranges) {
    if (!merged.empty() && range.first <= merged.back().second) {
      merged.back().second = std::max(merged.back().second, range.second);
    } else {
      merged.push_back(range);
    }
  }
  for (const auto& [begin, end] : merged) {
    RETURN_IF_ERROR(
        CudaStatus(cudaHostRegister(reinterpret_cast<void*>(begin), end - begin,
                                    cudaHostRegisterReadOnly | cudaHostRegisterPortable),
                   absl::StrFormat("registering %d MiB of experts in memory with the GPU",
                                   (end - begin) >> 20)));
    registered_.emplace_back(begin, end);
  }
  return absl::OkStatus();
}

const DeviceExperts* ExpertStream::Find(int layer) const {
  const auto it = layers_.find(layer);
  return it == layers_.end() ? nullptr : &it->second;
}

void ExpertStream::Begin(CudaRun* run) {
  LAUNCH(run, cudaStreamSynchronize(stream_));
  next_ = 0;
  for (size_t i = 0; i < std::min(slots_.size(), copies_.size()); ++i) Enqueue(run, i);
}

void ExpertStream::Enqueue(CudaRun* run, size_t index) {
  const Copy& copy = copies_[index];
  const Slot& slot = slots_[index % slots_.size()];
  // The first round finds its slots free: no ubatch is running.
  if (index >= slots_.size()) LAUNCH(run, cudaStreamWaitEvent(stream_, slot.free));
  if (copy.pitch == copy.row_bytes) {
    LAUNCH(run, cudaMemcpyAsync(slot.data, copy.from, copy.rows * copy.row_bytes,
                                cudaMemcpyHostToDevice, stream_));
  } else {
    LAUNCH(run, cudaMemcpy2DAsync(slot.data, copy.row_bytes, copy.from, copy.pitch, copy.row_bytes,
                                  copy.rows, cudaMemcpyHostToDevice, stream_));
  }
  LAUNCH(run, cudaEventRecord(slot.filled, stream_));
}

ExpertStream::Piece ExpertStream::Acquire(CudaRun* run) {
  CHECK(next_ < copies_.size());
  const Copy& copy = copies_[next_];
  const Slot& slot = slots_[next_ % slots_.size()];
  LAUNCH(run, cudaStreamWaitEvent(run->stream, slot.filled));
  return {.data = slot.data, .first = copy.first, .count = copy.count};
}

void ExpertStream::Release(CudaRun* run) {
  LAUNCH(run, cudaEventRecord(slots_[next_ % slots_.size()].free, run->stream));
  if (next_ + slots_.size() < copies_.size()) Enqueue(run, next_ + slots_.size());
  ++next_;
}

}  // namespace packtrain

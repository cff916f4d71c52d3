#include "worker/device/cuda/cuda_weights.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstring>

#include "absl/strings/str_format.h"
#include "common/base/status_macros.h"

namespace packtrain {
namespace {

constexpr size_t kStagingBytes = size_t{32} << 20;

// Two page-locked buffers in turn: one is filled while the other is copied.
class Staging {
 public:
  ~Staging() {
    for (cudaEvent_t event : copied_) {
      if (event != nullptr) cudaEventDestroy(event);
    }
    if (stream_ != nullptr) cudaStreamDestroy(stream_);
  }
  absl::Status Open() {
    RETURN_IF_CUDA(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
    for (int i = 0; i < 2; ++i) {
      ASSIGN_OR_RETURN(buffers_[i], PinnedMemory::Allocate(kStagingBytes));
      RETURN_IF_CUDA(cudaEventCreateWithFlags(&copied_[i], cudaEventDisableTiming));
    }
    return absl::OkStatus();
  }
  absl::Status Copy(void* to, const void* from, size_t bytes) {
    RETURN_IF_CUDA(cudaEventSynchronize(copied_[next_]));
    std::memcpy(buffers_[next_]->data(), from, bytes);
    RETURN_IF_CUDA(
        cudaMemcpyAsync(to, buffers_[next_]->data(), bytes, cudaMemcpyHostToDevice, stream_));
    RETURN_IF_CUDA(cudaEventRecord(copied_[next_], stream_));
    next_ ^= 1;
    return absl::OkStatus();
  }
  absl::Status Finish() {
    RETURN_IF_CUDA(cudaStreamSynchronize(stream_));
    return absl::OkStatus();
  }

 private:
  std::unique_ptr<PinnedMemory> buffers_[2];
  cudaEvent_t copied_[2] = {};
  cudaStream_t stream_ = nullptr;
  int next_ = 0;
};

}  // namespace

void WeightUploader::Add(const MatrixView& view, DeviceMatrix* target) {
  if (view.empty()) return;
  target->kernels = cuda::FindWeightKernels(view.type);
  target->rows = static_cast<int>(view.rows);
  target->cols = static_cast<int>(view.cols);
  if (target->kernels == nullptr && status_.ok()) {
    status_ = absl::InvalidArgumentError(
        absl::StrFormat("tensor type %s cannot be computed with", TypeName(view.type)));
  }
  matrices_.push_back({view, target});
}

void WeightUploader::Add(const std::vector<float>& values, const float** target) {
  if (!values.empty()) vectors_.push_back({values, target});
}

void WeightUploader::Add(const LayerWeights& w, DeviceLayer* t) {
  Add(w.attn_norm, &t->attn_norm), Add(w.ffn_norm, &t->ffn_norm);
  Add(w.mla.q_a, &t->q_a), Add(w.mla.q_b, &t->q_b), Add(w.mla.q_direct, &t->q_direct);
  Add(w.mla.kv_a, &t->kv_a), Add(w.mla.k_b, &t->k_b), Add(w.mla.v_b, &t->v_b);
  Add(w.mla.q_a_norm, &t->q_a_norm), Add(w.mla.kv_a_norm, &t->kv_a_norm);
  Add(w.indexer.q_b, &t->index_q_b), Add(w.indexer.k, &t->index_k),
      Add(w.indexer.proj, &t->index_proj);
  Add(w.indexer.k_norm, &t->index_k_norm), Add(w.indexer.k_norm_bias, &t->index_k_norm_bias);
  Add(w.gqa.q, &t->q), Add(w.gqa.k, &t->k), Add(w.gqa.v, &t->v);
  Add(w.gqa.q_bias, &t->q_bias), Add(w.gqa.k_bias, &t->k_bias), Add(w.gqa.v_bias, &t->v_bias);
  Add(w.gqa.q_norm, &t->q_norm), Add(w.gqa.k_norm, &t->k_norm);
  Add(w.delta_net.qkv, &t->delta_qkv), Add(w.delta_net.gate, &t->delta_gate);
  Add(w.delta_net.beta, &t->delta_beta), Add(w.delta_net.alpha, &t->delta_alpha);
  Add(w.delta_net.out, &t->delta_out), Add(w.delta_net.conv, &t->delta_conv);
  Add(w.delta_net.dt_bias, &t->delta_dt_bias), Add(w.delta_net.a, &t->delta_a);
  Add(w.delta_net.norm, &t->delta_norm), Add(w.attn_output, &t->attn_output);
  Add(w.dense.gate, &t->dense.gate), Add(w.dense.up, &t->dense.up),
      Add(w.dense.down, &t->dense.down);
  Add(w.moe.router, &t->router), Add(w.moe.router_bias, &t->router_bias);
  Add(w.moe.shared.gate, &t->shared.gate), Add(w.moe.shared.up, &t->shared.up);
  Add(w.moe.shared.down, &t->shared.down);
  if (!w.moe.shared_router.empty()) {
    t->shared_router.kernels = cuda::FindWeightKernels(TensorType::kF32);
    t->shared_router.rows = 1;
    t->shared_router.cols = static_cast<int>(w.moe.shared_router.size());
    Add(w.moe.shared_router, reinterpret_cast<const float**>(&t->shared_router.data));
  }
}

void WeightUploader::Add(const ExpertWeights& w, DeviceExperts* t) {
  Add(w.gate, &t->ffn.gate), Add(w.up, &t->ffn.up), Add(w.down, &t->ffn.down);
  t->num_experts = static_cast<int>(w.num_experts);
  t->expert_dim = static_cast<int>(w.expert_dim);
  t->row_stride = static_cast<int>(w.row_stride);
}

void WeightUploader::MergeRanges() {
  ranges_.clear();
  for (const Matrix& m : matrices_) ranges_.push_back({m.view.data, m.view.data + m.view.bytes()});
  std::sort(ranges_.begin(), ranges_.end(),
            [](const Range& a, const Range& b) { return a.begin < b.begin; });
  size_t kept = 0;
  for (const Range& range : ranges_) {
    if (kept > 0 && range.begin < ranges_[kept - 1].end) {
      ranges_[kept - 1].end = std::max(ranges_[kept - 1].end, range.end);
    } else {
      ranges_[kept++] = range;
    }
  }
  ranges_.resize(kept);
}

size_t WeightUploader::bytes() {
  MergeRanges();
  DevicePlan plan;
  for (Range& range : ranges_)
    plan.Add(&range.device, static_cast<size_t>(range.end - range.begin));
  for (Vector& v : vectors_) plan.Add(v.target, v.values.size());
  return plan.bytes();
}

absl::Status WeightUploader::Upload(DevicePlan* memory, const LoadProgress& progress) {
  MergeRanges();
  uint64_t total = 0, done = 0;
  for (Range& range : ranges_) {
    memory->Add(&range.device, static_cast<size_t>(range.end - range.begin));
    total += static_cast<uint64_t>(range.end - range.begin);
  }
  for (Vector& v : vectors_) memory->Add(v.target, v.values.size());
  RETURN_IF_ERROR(memory->Allocate("weights", false));

  Staging staging;
  RETURN_IF_ERROR(staging.Open());
  for (const Range& range : ranges_) {
    const auto bytes = static_cast<size_t>(range.end - range.begin);
    for (size_t at = 0; at < bytes; at += kStagingBytes) {
      const size_t part = std::min(kStagingBytes, bytes - at);
      RETURN_IF_ERROR(staging.Copy(range.device + at, range.begin + at, part));
      done += part;
      if (progress && !progress(done, total)) {
        return absl::CancelledError("loading was cancelled");
      }
    }
  }
  for (const Vector& v : vectors_) {
    RETURN_IF_ERROR(staging.Copy(const_cast<float*>(*v.target), v.values.data(),
                                 v.values.size() * sizeof(float)));
  }
  RETURN_IF_ERROR(staging.Finish());
  for (const Matrix& m : matrices_) {
    const auto after =
        std::upper_bound(ranges_.begin(), ranges_.end(), m.view.data,
                         [](const std::byte* p, const Range& range) { return p < range.begin; });
    const Range& range = *(after - 1);
    m.target->data = range.device + (m.view.data - range.begin);
  }
  return absl::OkStatus();
}

}  // namespace packtrain

#pragma once

// A stage on a CUDA device. Everything it needs is allocated when it is created; what does not fit
// is refused then, with the bill.

#include <compare>
#include <map>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "common/model/tensors.h"
#include "common/model/weight_source.h"
#include "worker/device/cuda/cuda_memory.h"
#include "worker/device/cuda/cuda_run.h"
#include "worker/device/cuda/cuda_sampler.h"
#include "worker/device/cuda/cuda_weights.h"
#include "worker/device/cuda/expert_stream.h"
#include "worker/device/cuda/remote_experts.h"
#include "worker/device/cuda_plugin.h"
#include "worker/engine/stage.h"

namespace packtrain {

class CudaStage : public Stage {
 public:
  // `config` and options.streamed are borrowed for the stage's life, `tensors` and `source` until
  // it returns, unless the stage embeds: then `source` for its life. Errors: INVALID_ARGUMENT for a
  // layer range, a tensor type or a cache type that cannot be served; FAILED_PRECONDITION if
  // experts are neither resident nor elsewhere, or there is no such device; RESOURCE_EXHAUSTED with
  // the bill.
  static absl::StatusOr<std::unique_ptr<CudaStage>> Create(const ModelConfig& config,
                                                           const ModelTensors& tensors,
                                                           const WeightSource& source,
                                                           const StageSpec& spec,
                                                           const CudaStageOptions& options);
  // What Create would take of the device; needs none.
  static absl::StatusOr<StageMemory> MemoryOf(const ModelConfig& config,
                                              const ModelTensors& tensors,
                                              const WeightSource& source, const StageSpec& spec,
                                              const CudaStageOptions& options);
  ~CudaStage() override;

  absl::Status Run(const Ubatch& ubatch, const Bundle& in, Bundle* out) override;
  std::span<const float> logits() const override { return logits_view_; }
  const SequenceOutput* sampled(size_t index) const override { return sampler_.output(index); }
  int gpu_operations() const override { return run_.operations; }
  StageMemory memory() const override { return memory_; }

 private:
  static constexpr int kMaxPageCopies = 1024;  // at a time
  static size_t Product(int a, int b) { return static_cast<size_t>(a) * static_cast<size_t>(b); }
  static size_t PagesOf(int positions) {
    return static_cast<size_t>((positions + kPagePositions - 1) / kPagePositions);
  }

  CudaStage(const ModelConfig& config, const StageSpec& spec, const CudaStageOptions& options);
  // Everything up to the first byte taken.
  absl::Status Plan(const ModelTensors& tensors, const WeightSource& source,
                    WeightUploader* uploader);
  absl::Status Open(const ModelTensors& tensors, const WeightSource& source);
  absl::Status Bind(const ModelTensors& tensors, const WeightSource& source,
                    WeightUploader* uploader);
  absl::Status BindStreamed(int layer, const ModelTensors& tensors, const CpuKernels& types);
  void PlanCache();
  void PlanBuffers();
  size_t MeasureScratch();
  absl::Status AllocateHost();

  absl::Status Check(const Ubatch& ubatch, const Bundle& in) const;
  // Where the arrays of a ubatch of so many rows stand behind `base`, and their bytes.
  std::pair<DeviceBatch, size_t> PlaceBatch(std::byte* base, int rows) const;
  size_t BatchBytes() const;
  void UploadBatch(const Ubatch& ubatch);
  void PrepareState(const Ubatch& ubatch);
  // Slot := snapshot, or the other way; snapshot -1: := 0.
  void CopyState(int slot, int snapshot, bool save);
  absl::Status ReadBundle(const Ubatch& ubatch, const Bundle& in);
  void RunLayers();
  // RunLayers for a decode step: launched kernel by kernel at first, recorded when the shape comes
  // again.
  void RunDecodeStep();
  absl::Status Record(CudaRecording* recording);
  absl::Status RunHead(const Ubatch& ubatch);
  // device_logits_ := those of up to kDecodeRows rows.
  void ComputeLogits(std::span<const int> rows);
  absl::Status WriteBundle(const Ubatch& ubatch, Bundle* out);
  // Waits for what has been enqueued; then run_.status tells whether its results are valid.
  void Finish();
  bool Streams(int rows) const;
  bool SelectionCrosses(int layer) const;

  const ModelConfig& config_;
  StageSpec spec_;
  CudaStageOptions options_;
  // What the launches of a decode step depend on.
  struct StepShape {
    int rows = 0;
    int sequences = 0;  // of models with recurrent state
    int columns = 0;    // of sparse attention
    auto operator<=>(const StepShape&) const = default;
  };

  CudaRun run_;
  ExpertStream expert_stream_;
  RemoteExperts remote_experts_;
  CudaSampler sampler_;
  int num_tables_ = 0;  // page table entries that a ubatch may bring

  DevicePlan weights_, cache_memory_, buffers_;
  std::vector<DeviceLayer> layers_;
  std::vector<DeviceLayerCache> caches_;
  DeviceMatrix output_;
  const float* output_norm_ = nullptr;
  MatrixView embedding_;  // in host memory
  StageMemory memory_;

  float* hidden_ = nullptr;
  float* layer_out_ = nullptr;
  std::byte* batch_ = nullptr;  // what run_.batch points into
  double* frequencies_ = nullptr;
  int32_t* copies_ = nullptr;  // page copies: from, then to
  float* device_logits_ = nullptr;
  std::unique_ptr<PinnedMemory> staging_, logits_host_;
  std::vector<float> logits_;
  std::span<const float> logits_view_;
  std::map<StepShape, std::unique_ptr<CudaRecording>> recordings_;  // null: came once
};

}  // namespace packtrain

#pragma once

// A stage on the CPU: the reference that every other device is compared with.

#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "common/model/tensors.h"
#include "common/model/weight_source.h"
#include "worker/engine/stage.h"
#include "worker/graph/context.h"
#include "worker/graph/head.h"
#include "worker/graph/layers.h"

namespace packtrain {

struct CpuStageOptions {
  const CpuKernels* kernels = nullptr;
  // Serves the MoE layers outside [resident_first, resident_last); may be null if there are none.
  ExpertsClient* experts = nullptr;
  int spin_us = -1;  // as in ThreadPoolOptions
};

class CpuStage : public Stage {
 public:
  // `config`, `tensors` and `source` are borrowed for the stage's life. Weights stay where they
  // are. Errors: INVALID_ARGUMENT for a layer range or a tensor type that cannot be served;
  // FAILED_PRECONDITION if experts are neither resident nor elsewhere.
  static absl::StatusOr<std::unique_ptr<CpuStage>> Create(const ModelConfig& config,
                                                          const ModelTensors& tensors,
                                                          const WeightSource& source,
                                                          const StageSpec& spec,
                                                          const CpuStageOptions& options);

  absl::Status Run(const Ubatch& ubatch, const Bundle& in, Bundle* out) override;
  std::span<const float> logits() const override { return head_.logits(); }
  StageMemory memory() const override;

  // After Run on a stage with the head: f32 [rows, hidden_dim], the hidden state of every row
  // behind the output norm: what an MTP block continues from. Valid until the next Run.
  std::span<const float> final_hidden() const { return head_.final_hidden(); }

  // Where the time of all steps went.
  OpTimes& op_times() { return run_.times; }

 private:
  CpuStage(const ModelConfig& config, const StageSpec& spec, const CpuStageOptions& options);
  absl::Status Bind(const ModelTensors& tensors, const WeightSource& source);
  absl::Status Check(const Ubatch& ubatch, const Bundle& in) const;
  void PrepareState(const Ubatch& ubatch);
  absl::Status ReadBundle(const Bundle& in, float* hidden);
  void WriteBundle(const Ubatch& ubatch, const float* hidden, Bundle* out);
  bool SelectionCrosses(int layer) const;

  const ModelConfig& config_;
  StageSpec spec_;
  ThreadPool pool_;
  KvCache cache_;
  RecurrentState state_;
  RunContext run_;
  std::vector<DecoderLayer> layers_;
  std::unique_ptr<LocalExperts> experts_;
  MatrixView embedding_;
  Head head_;
  uint64_t weight_bytes_ = 0;

  Buffer hidden_;
};

}  // namespace packtrain

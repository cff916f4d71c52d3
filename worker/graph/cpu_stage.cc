#include "worker/graph/cpu_stage.h"

#include <cstring>

#include "absl/strings/str_format.h"
#include "common/base/status_macros.h"
#include "worker/graph/ubatch_check.h"

namespace packtrain {
namespace {

constexpr std::string_view kHidden = "hidden";
constexpr std::string_view kSelection = "selection";

}  // namespace

CpuStage::CpuStage(const ModelConfig& config, const StageSpec& spec, const CpuStageOptions& options)
    : config_(config),
      spec_(spec),
      pool_(ThreadPoolOptions{.num_threads = spec.threads, .spin_us = options.spin_us}),
      cache_(config, spec.first_layer, spec.last_layer, spec.kv_cache, spec.num_pages),
      state_(config, spec.first_layer, spec.last_layer, spec.num_slots, spec.num_snapshots),
      run_(config, OpContext{.kernels = options.kernels, .pool = &pool_}) {
  run_.cache = &cache_;
  run_.state = &state_;
  run_.remote_experts = options.experts;
}

absl::StatusOr<std::unique_ptr<CpuStage>> CpuStage::Create(const ModelConfig& config,
                                                           const ModelTensors& tensors,
                                                           const WeightSource& source,
                                                           const StageSpec& spec,
                                                           const CpuStageOptions& options) {
  if (spec.first_layer < 0 || spec.first_layer >= spec.last_layer ||
      spec.last_layer > config.num_layers) {
    return absl::InvalidArgumentError(
        absl::StrFormat("a stage of layers [%d, %d) of a model of %d layers", spec.first_layer,
                        spec.last_layer, config.num_layers));
  }
  std::unique_ptr<CpuStage> stage(new CpuStage(config, spec, options));
  RETURN_IF_ERROR(stage->Bind(tensors, source));
  return stage;
}

absl::Status CpuStage::Bind(const ModelTensors& tensors, const WeightSource& source) {
  WeightBinder binder(config_, tensors, source, *run_.op.kernels);
  std::vector<ExpertWeights> experts;
  for (int layer = spec_.first_layer; layer < spec_.last_layer; ++layer) {
    layers_.emplace_back(layer, binder.Layer(layer));
    const bool moe = config_.layers[static_cast<size_t>(layer)].ffn == FfnKind::kMoe;
    const bool resident = layer >= spec_.resident_first && layer < spec_.resident_last;
    experts.push_back(moe && resident ? binder.Experts(layer) : ExpertWeights{});
    if (moe && !resident && run_.remote_experts == nullptr) {
      return absl::FailedPreconditionError(
          absl::StrFormat("nobody serves the experts of layer %d", layer));
    }
  }
  experts_ = std::make_unique<LocalExperts>(run_.op, spec_.first_layer, std::move(experts));
  run_.local_experts = experts_.get();
  if (spec_.embeds) embedding_ = binder.Matrix(TensorRole::kTokenEmbd, -1);
  if (spec_.has_head) {
    MatrixView output = binder.Matrix(TensorRole::kOutput, -1);
    if (output.empty()) output = binder.Matrix(TensorRole::kTokenEmbd, -1);
    head_ = Head(binder.Vector(TensorRole::kOutputNorm, -1), output);
  }
  weight_bytes_ = binder.bytes();
  return binder.status();
}

// A layer that shares the choice of a layer before it.
bool CpuStage::SelectionCrosses(int layer) const {
  return layer < config_.num_layers &&
         config_.layers[static_cast<size_t>(layer)].indexer == IndexerKind::kShared;
}

absl::Status CpuStage::Check(const Ubatch& ubatch, const Bundle& in) const {
  RETURN_IF_ERROR(CheckUbatch(ubatch,
                              {.num_slots = spec_.num_slots,
                               .num_pages = spec_.num_pages,
                               .num_snapshots = spec_.num_snapshots,
                               .max_tokens = spec_.max_tokens},
                              config_));
  if (spec_.embeds) return absl::OkStatus();
  RETURN_IF_ERROR(
      CheckBundleTensor(in, kHidden, ElementType::kF32, ubatch.rows, config_.hidden_dim));
  if (!SelectionCrosses(spec_.first_layer)) return absl::OkStatus();
  return CheckBundleTensor(in, kSelection, ElementType::kI32, ubatch.rows, config_.indexer.top_k);
}

void CpuStage::PrepareState(const Ubatch& ubatch) {
  for (const PageCopy& copy : ubatch.page_copies) cache_.CopyPage(copy.from, copy.to);
  if (!config_.has_recurrent_state()) return;
  for (const UbatchSequence& sequence : ubatch.sequences) {
    if (sequence.reset) state_.Reset(sequence.slot);
    if (sequence.restore_snapshot >= 0) state_.Restore(sequence.restore_snapshot, sequence.slot);
  }
}

absl::Status CpuStage::ReadBundle(const Bundle& in, float* hidden) {
  const BundleTensor& tensor = *in.Find(kHidden);
  std::memcpy(hidden, tensor.data.data(), tensor.data.size());
  if (!SelectionCrosses(spec_.first_layer)) return absl::OkStatus();
  Selection& selection = run_.selection;
  const auto top_k = static_cast<size_t>(selection.top_k);
  const int32_t* chosen = in.Find(kSelection)->i32();
  selection.positions.resize(run_.rows() * top_k);
  for (size_t row = 0; row < run_.rows(); ++row) {
    if (run_.positions[row] < selection.top_k) continue;  // all of them
    int count = 0;
    // From outside: only visible positions may be looked at.
    for (size_t i = 0; i < top_k; ++i) {
      const int32_t position = chosen[row * top_k + i];
      if (position < 0 || position > run_.positions[row]) continue;
      selection.positions[row * top_k + static_cast<size_t>(count++)] = position;
    }
    if (count == 0) {
      return absl::InvalidArgumentError(
          absl::StrFormat("bundle tensor %s has no visible position for row %d", kSelection, row));
    }
    selection.counts[row] = count;
  }
  return absl::OkStatus();
}

void CpuStage::WriteBundle(const Ubatch& ubatch, const float* hidden, Bundle* out) {
  out->step_id = ubatch.step_id;
  const auto rows = static_cast<uint32_t>(run_.rows());
  BundleTensor* tensor =
      out->Shape(0, kHidden, ElementType::kF32, rows, static_cast<uint32_t>(config_.hidden_dim));
  std::memcpy(tensor->data.data(), hidden, tensor->data.size());
  if (!SelectionCrosses(spec_.last_layer)) {
    out->tensors.resize(1);
    return;
  }
  const Selection& selection = run_.selection;
  const auto top_k = static_cast<size_t>(selection.top_k);
  tensor = out->Shape(1, kSelection, ElementType::kI32, rows, static_cast<uint32_t>(top_k));
  out->tensors.resize(2);
  for (size_t row = 0; row < run_.rows(); ++row) {
    int32_t* chosen = tensor->i32() + row * top_k;
    const int32_t* positions = selection.Row(row);
    const int count = positions == nullptr ? run_.positions[row] + 1 : selection.counts[row];
    for (size_t i = 0; i < top_k; ++i) {
      chosen[i] = i >= static_cast<size_t>(count) ? -1
                  : positions == nullptr          ? static_cast<int32_t>(i)
                                                  : positions[i];
    }
  }
}

absl::Status CpuStage::Run(const Ubatch& ubatch, const Bundle& in, Bundle* out) {
  RETURN_IF_ERROR(Check(ubatch, in));
  run_.times.Begin(OpKind::kEmbed);
  PrepareState(ubatch);
  run_.SetBatch(ubatch);
  float* hidden = hidden_.Get(run_.rows() * static_cast<size_t>(config_.hidden_dim));
  if (spec_.embeds) {
    Embed(run_, embedding_, hidden);
  } else {
    RETURN_IF_ERROR(ReadBundle(in, hidden));
  }
  for (DecoderLayer& layer : layers_) RETURN_IF_ERROR(layer.Run(&run_, hidden));
  if (config_.has_recurrent_state()) {
    for (const UbatchSequence& sequence : ubatch.sequences) {
      if (sequence.save_snapshot >= 0) state_.Save(sequence.slot, sequence.save_snapshot);
    }
  }
  run_.times.Begin(OpKind::kHead);
  if (spec_.has_head) {
    head_.Run(&run_, hidden);
  } else {
    WriteBundle(ubatch, hidden, out);
  }
  run_.times.Begin(OpKind::kIdle);
  return absl::OkStatus();
}

StageMemory CpuStage::memory() const {
  return {.weights = weight_bytes_,
          .kv = cache_.bytes(),
          .recurrent = state_.bytes(),
          .buffers = hidden_.bytes() + head_.bytes()};
}

}  // namespace packtrain

#include "worker/graph/cpu_stage.h"

#include <algorithm>

#include "absl/strings/str_format.h"
#include "common/base/check.h"
#include "common/base/status_macros.h"
#include "common/quant/codec.h"
#include "worker/ops/vector_math.h"

namespace packtrain {
namespace {

constexpr std::string_view kHidden = "hidden";
constexpr std::string_view kSelection = "selection";

absl::Status CheckSequence(const UbatchSequence& sequence, const StageSpec& spec,
                           const ModelConfig& config) {
  const auto error = [&](std::string_view what, int64_t value, int64_t limit) {
    return absl::InvalidArgumentError(
        absl::StrFormat("slot %d: %s %d, allowed 0 to %d", sequence.slot, what, value, limit));
  };
  if (sequence.slot < 0 || sequence.slot >= spec.num_slots) {
    return error("slot", sequence.slot, spec.num_slots - 1);
  }
  if (sequence.start < 0 || sequence.rows < 1 ||
      sequence.start > config.context_length - sequence.rows) {
    return error("end position", int64_t{sequence.start} + sequence.rows, config.context_length);
  }
  if (sequence.tokens.size() != static_cast<size_t>(sequence.rows)) {
    return error("number of token ids", static_cast<int64_t>(sequence.tokens.size()),
                 sequence.rows);
  }
  for (TokenId token : sequence.tokens) {
    if (token < 0 || token >= config.vocab_size) {
      return error("token id", token, config.vocab_size - 1);
    }
  }
  const auto pages = static_cast<size_t>((sequence.start + sequence.rows - 1) / kPagePositions + 1);
  if (sequence.pages.size() < pages) {
    return error("position without a page", sequence.start + sequence.rows - 1,
                 static_cast<int64_t>(sequence.pages.size()) * kPagePositions - 1);
  }
  for (size_t i = 0; i < pages; ++i) {
    if (sequence.pages[i] < 0 || sequence.pages[i] >= spec.num_pages) {
      return error("page", sequence.pages[i], spec.num_pages - 1);
    }
  }
  for (int32_t snapshot : {sequence.restore_snapshot, sequence.save_snapshot}) {
    if (snapshot >= spec.num_snapshots) return error("snapshot", snapshot, spec.num_snapshots - 1);
  }
  return absl::OkStatus();
}

absl::Status CheckTensor(const Bundle& bundle, std::string_view name, ElementType type,
                         int64_t rows, int64_t cols) {
  const BundleTensor* tensor = bundle.Find(name);
  if (tensor == nullptr) {
    return absl::InvalidArgumentError(absl::StrFormat("the bundle has no tensor %s", name));
  }
  if (tensor->type != type || tensor->rows != rows || tensor->cols != cols ||
      tensor->data.size() != tensor->bytes()) {
    return absl::InvalidArgumentError(
        absl::StrFormat("bundle tensor %s is %dx%d in %d bytes, wanted %dx%d", name, tensor->rows,
                        tensor->cols, tensor->data.size(), rows, cols));
  }
  return absl::OkStatus();
}

}  // namespace

CpuStage::CpuStage(const ModelConfig& config, const StageSpec& spec, const CpuStageOptions& options)
    : config_(config),
      spec_(spec),
      pool_(spec.threads),
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
    output_norm_ = binder.Vector(TensorRole::kOutputNorm, -1);
    head_ = binder.Matrix(TensorRole::kOutput, -1);
    if (head_.empty()) head_ = binder.Matrix(TensorRole::kTokenEmbd, -1);
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
  int64_t rows = 0;
  for (const UbatchSequence& sequence : ubatch.sequences) {
    RETURN_IF_ERROR(CheckSequence(sequence, spec_, config_));
    rows += sequence.rows;
  }
  if (rows != ubatch.rows || rows > spec_.max_tokens) {
    return absl::InvalidArgumentError(
        absl::StrFormat("a ubatch of %d rows says it has %d, at most %d are allowed", rows,
                        ubatch.rows, spec_.max_tokens));
  }
  for (const PageCopy& copy : ubatch.page_copies) {
    for (int32_t page : {copy.from, copy.to}) {
      if (page < 0 || page >= spec_.num_pages) {
        return absl::InvalidArgumentError(
            absl::StrFormat("page copy: page %d, allowed 0 to %d", page, spec_.num_pages - 1));
      }
    }
  }
  if (spec_.embeds) return absl::OkStatus();
  RETURN_IF_ERROR(CheckTensor(in, kHidden, ElementType::kF32, rows, config_.hidden_dim));
  if (!SelectionCrosses(spec_.first_layer)) return absl::OkStatus();
  RETURN_IF_ERROR(CheckTensor(in, kSelection, ElementType::kI32, rows, config_.indexer.top_k));
  return absl::OkStatus();
}

void CpuStage::PrepareState(const Ubatch& ubatch) {
  for (const PageCopy& copy : ubatch.page_copies) cache_.CopyPage(copy.from, copy.to);
  if (!config_.has_recurrent_state()) return;
  for (const UbatchSequence& sequence : ubatch.sequences) {
    if (sequence.reset) state_.Reset(sequence.slot);
    if (sequence.restore_snapshot >= 0) state_.Restore(sequence.restore_snapshot, sequence.slot);
  }
}

void CpuStage::Embed(float* hidden) const {
  const auto dim = static_cast<size_t>(config_.hidden_dim);
  for (size_t row = 0; row < run_.rows(); ++row) {
    const UbatchSequence& sequence = *run_.sequence_of[row];
    const TokenId token =
        sequence.tokens[static_cast<size_t>(run_.positions[row] - sequence.start)];
    Decode(embedding_.type, embedding_.Rows(static_cast<size_t>(token), 1).data, dim,
           hidden + row * dim);
  }
}

void CpuStage::ReadBundle(const Bundle& in, float* hidden) {
  const BundleTensor& tensor = *in.Find(kHidden);
  std::memcpy(hidden, tensor.data.data(), tensor.data.size());
  if (!SelectionCrosses(spec_.first_layer)) return;
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
    selection.counts[row] = count;
  }
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

void CpuStage::RunHead(const Ubatch& ubatch, const float* hidden) {
  const auto dim = static_cast<size_t>(config_.hidden_dim);
  final_hidden_.resize(run_.rows() * dim);
  run_.ForRows([&](size_t row, int) {
    RmsNorm(hidden + row * dim, output_norm_.data(), config_.rms_eps, dim,
            final_hidden_.data() + row * dim);
  });
  logit_rows_.clear();
  size_t row = 0, asked = 0;
  for (const UbatchSequence& sequence : ubatch.sequences) {
    for (int32_t i = 0; i < sequence.rows; ++i, ++row) {
      if (!sequence.logits_all && !(sequence.logits_last && i == sequence.rows - 1)) continue;
      const auto from = final_hidden_.begin() + static_cast<std::ptrdiff_t>(row * dim);
      logit_rows_.insert(logit_rows_.end(), from, from + static_cast<std::ptrdiff_t>(dim));
      ++asked;
    }
  }
  num_logits_ = asked * head_.rows;
  if (logits_.size() < num_logits_) logits_.resize(num_logits_);
  run_.x.Reset(logit_rows_.data(), asked, dim);
  Linear(run_.op, head_, &run_.x, logits_.data());
}

absl::Status CpuStage::Run(const Ubatch& ubatch, const Bundle& in, Bundle* out) {
  RETURN_IF_ERROR(Check(ubatch, in));
  PrepareState(ubatch);
  run_.SetBatch(ubatch);
  float* hidden = hidden_.Get(run_.rows() * static_cast<size_t>(config_.hidden_dim));
  if (spec_.embeds) {
    Embed(hidden);
  } else {
    ReadBundle(in, hidden);
  }
  for (DecoderLayer& layer : layers_) RETURN_IF_ERROR(layer.Run(&run_, hidden));
  if (config_.has_recurrent_state()) {
    for (const UbatchSequence& sequence : ubatch.sequences) {
      if (sequence.save_snapshot >= 0) state_.Save(sequence.slot, sequence.save_snapshot);
    }
  }
  if (spec_.has_head) {
    RunHead(ubatch, hidden);
  } else {
    WriteBundle(ubatch, hidden, out);
  }
  return absl::OkStatus();
}

StageMemory CpuStage::memory() const {
  return {.weights = weight_bytes_,
          .kv = cache_.bytes(),
          .recurrent = state_.bytes(),
          .buffers = hidden_.bytes() + logits_.size() * sizeof(float)};
}

}  // namespace packtrain

#include "worker/graph/mtp_block.h"

#include "absl/strings/str_format.h"
#include "common/base/status_macros.h"
#include "worker/graph/ubatch_check.h"

namespace packtrain {

MtpBlock::MtpBlock(const ModelConfig& config, const MtpOptions& options)
    : config_(config),
      options_(options),
      pool_(options.threads),
      cache_(config, config.num_layers, config.num_layers + 1, options.kv_cache, options.num_pages),
      run_(config, OpContext{.kernels = options.kernels, .pool = &pool_}) {
  run_.cache = &cache_;
}

absl::StatusOr<std::unique_ptr<MtpBlock>> MtpBlock::Create(const ModelConfig& config,
                                                           const ModelTensors& tensors,
                                                           const WeightSource& source,
                                                           const MtpOptions& options) {
  if (!tensors.has_mtp()) {
    return absl::FailedPreconditionError(absl::StrFormat(
        "the file has no tensors of an MTP block (blk.%d.nextn.*)", config.num_layers));
  }
  std::unique_ptr<MtpBlock> block(new MtpBlock(config, options));
  RETURN_IF_ERROR(block->Bind(tensors, source));
  return block;
}

absl::Status MtpBlock::Bind(const ModelTensors& tensors, const WeightSource& source) {
  const int layer = config_.num_layers;
  WeightBinder binder(config_, tensors, source, *run_.op.kernels);
  layer_ = std::make_unique<DecoderLayer>(layer, binder.Layer(layer));
  experts_ = std::make_unique<LocalExperts>(run_.op, layer,
                                            std::vector<ExpertWeights>{binder.Experts(layer)});
  run_.local_experts = experts_.get();
  proj_ = binder.Matrix(TensorRole::kMtpProj, layer);
  embedding_norm_ = binder.Vector(TensorRole::kMtpEmbdNorm, layer);
  hidden_norm_ = binder.Vector(TensorRole::kMtpHiddenNorm, layer);
  // What the block does not have of its own it shares with the trunk.
  embedding_ = binder.Matrix(TensorRole::kMtpEmbd, layer);
  if (embedding_.empty()) embedding_ = binder.Matrix(TensorRole::kTokenEmbd, -1);
  std::vector<float> norm = binder.Vector(TensorRole::kMtpHeadNorm, layer);
  if (norm.empty()) norm = binder.Vector(TensorRole::kOutputNorm, -1);
  MatrixView output = binder.Matrix(TensorRole::kMtpHead, layer);
  if (output.empty()) output = binder.Matrix(TensorRole::kOutput, -1);
  if (output.empty()) output = binder.Matrix(TensorRole::kTokenEmbd, -1);
  head_ = Head(std::move(norm), output);
  weight_bytes_ = binder.bytes();
  return binder.status();
}

absl::Status MtpBlock::Run(const Ubatch& ubatch, std::span<const float> hidden) {
  RETURN_IF_ERROR(CheckUbatch(ubatch,
                              {.num_slots = options_.num_slots,
                               .num_pages = options_.num_pages,
                               .max_tokens = options_.max_tokens},
                              config_));
  const auto dim = static_cast<size_t>(config_.hidden_dim);
  if (hidden.size() != static_cast<size_t>(ubatch.rows) * dim) {
    return absl::InvalidArgumentError(
        absl::StrFormat("%d hidden values for %d rows of %d", hidden.size(), ubatch.rows, dim));
  }
  for (const PageCopy& copy : ubatch.page_copies) cache_.CopyPage(copy.from, copy.to);
  run_.SetBatch(ubatch);
  float* embedded = embedded_.Get(run_.rows() * dim);
  float* joined = joined_.Get(run_.rows() * 2 * dim);
  Embed(run_, embedding_, embedded);
  run_.ForRows(2 * dim, [&](size_t row, int) {
    float* out = joined + row * 2 * dim;
    run_.op.vector().rms_norm(embedded + row * dim, embedding_norm_.data(), config_.rms_eps, dim,
                              out);
    run_.op.vector().rms_norm(hidden.data() + row * dim, hidden_norm_.data(), config_.rms_eps, dim,
                              out + dim);
  });
  float* residual = hidden_.Get(run_.rows() * dim);
  run_.x.Reset(joined, run_.rows(), 2 * dim);
  Linear(run_.op, proj_, &run_.x, residual);
  RETURN_IF_ERROR(layer_->Run(&run_, residual));
  head_.Run(&run_, residual);
  return absl::OkStatus();
}

}  // namespace packtrain

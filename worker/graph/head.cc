#include "worker/graph/head.h"

namespace packtrain {

void Embed(const RunContext& run, const MatrixView& embedding, float* hidden) {
  const size_t dim = embedding.cols;
  run.ForRows(dim, [&](size_t row, int) {
    const UbatchSequence& sequence = *run.sequence_of[row];
    const auto i = static_cast<size_t>(run.positions[row] - sequence.start);
    const auto token = static_cast<size_t>(sequence.tokens[i]);
    run.op.vector().decode(embedding.type, embedding.Rows(token, 1).data, dim, hidden + row * dim);
  });
}

void Head::Run(RunContext* run, const float* hidden) {
  const size_t dim = norm_.size();
  final_hidden_.resize(run->rows() * dim);
  run->ForRows(dim, [&](size_t row, int) {
    run->op.vector().rms_norm(hidden + row * dim, norm_.data(), run->config.rms_eps, dim,
                              final_hidden_.data() + row * dim);
  });
  logit_rows_.clear();
  size_t asked = 0;
  for (size_t row = 0; row < run->rows(); ++row) {
    const UbatchSequence& sequence = *run->sequence_of[row];
    const bool last = run->positions[row] == sequence.start + sequence.rows - 1;
    if (!sequence.logits_all && !(sequence.logits_last && last)) continue;
    const float* from = final_hidden_.data() + row * dim;
    logit_rows_.insert(logit_rows_.end(), from, from + dim);
    ++asked;
  }
  num_logits_ = asked * output_.rows;
  if (logits_.size() < num_logits_) logits_.resize(num_logits_);
  run->x.Reset(logit_rows_.data(), asked, dim);
  Linear(run->op, output_, &run->x, logits_.data());
}

size_t Head::bytes() const {
  return (final_hidden_.size() + logit_rows_.size() + logits_.size()) * sizeof(float);
}

}  // namespace packtrain

#pragma once

// The two ends of a model: token ids to hidden states, hidden states to logits.

#include <span>
#include <vector>

#include "common/tensor/matrix_view.h"
#include "worker/graph/context.h"

namespace packtrain {

// hidden [rows, hidden_dim] := the embeddings of the batch's tokens.
void Embed(const RunContext& run, const MatrixView& embedding, float* hidden);

class Head {
 public:
  Head() = default;
  // norm [hidden_dim], output [vocab_size, hidden_dim], borrowed.
  Head(std::vector<float> norm, const MatrixView& output)
      : norm_(std::move(norm)), output_(output) {}

  // hidden [rows, hidden_dim] of the batch.
  void Run(RunContext* run, const float* hidden);

  // [rows, hidden_dim] behind the norm.
  std::span<const float> final_hidden() const { return final_hidden_; }
  // Of the rows whose sequence asked, [.., vocab_size].
  std::span<const float> logits() const { return {logits_.data(), num_logits_}; }
  size_t bytes() const;

 private:
  std::vector<float> norm_;
  MatrixView output_;
  std::vector<float> final_hidden_, logit_rows_, logits_;
  size_t num_logits_ = 0;
};

}  // namespace packtrain

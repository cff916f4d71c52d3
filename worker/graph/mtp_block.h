#pragma once

// The block for multi-token prediction: from a row's final hidden state and the token that follows
// it, the logits of the token after that. It has a KV cache of its own.

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

struct MtpOptions {
  KvCacheType kv_cache = KvCacheType::kF16;
  int num_pages = 0;
  int num_slots = 0;
  int max_tokens = 512;
  int threads = 0;
  const CpuKernels* kernels = nullptr;
};

class MtpBlock {
 public:
  // Borrows config, tensors and source. Errors: FAILED_PRECONDITION if the file has no such block;
  // INVALID_ARGUMENT for tensors that cannot be computed with.
  static absl::StatusOr<std::unique_ptr<MtpBlock>> Create(const ModelConfig& config,
                                                          const ModelTensors& tensors,
                                                          const WeightSource& source,
                                                          const MtpOptions& options);

  // Row i of a sequence is at position p = start + i and takes
  //   tokens[i]     the token at p
  //   hidden row i  [hidden_dim] the trunk's final hidden state at p - 1 (zeros for p = 0), or for
  //   a
  //                 chained draft this block's own hidden state of the draft before
  // and predicts the token at p + 1. It attends to all rows of its cache before it.
  // Errors: those of CpuStage::Run.
  absl::Status Run(const Ubatch& ubatch, std::span<const float> hidden);

  // Of the rows that asked, as of a stage. Valid until the next Run.
  std::span<const float> logits() const { return head_.logits(); }
  // [rows, hidden_dim], behind the head's norm. Valid until the next Run.
  std::span<const float> final_hidden() const { return head_.final_hidden(); }

  uint64_t weight_bytes() const { return weight_bytes_; }

 private:
  MtpBlock(const ModelConfig& config, const MtpOptions& options);
  absl::Status Bind(const ModelTensors& tensors, const WeightSource& source);

  const ModelConfig& config_;
  MtpOptions options_;
  ThreadPool pool_;
  KvCache cache_;
  RunContext run_;
  std::unique_ptr<DecoderLayer> layer_;
  std::unique_ptr<LocalExperts> experts_;
  MatrixView embedding_, proj_;
  std::vector<float> embedding_norm_, hidden_norm_;
  Head head_;
  uint64_t weight_bytes_ = 0;

  Buffer embedded_, joined_, hidden_;
};

}  // namespace packtrain

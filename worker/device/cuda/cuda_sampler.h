#pragma once

// Chooses tokens from logits that stay on the device; a few bytes a token come to the host. Where a
// filter (top-k, top-p, min-p) decides, the best logits are brought, and the host draws among them.

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "worker/device/cuda/cuda_memory.h"
#include "worker/device/cuda/cuda_run.h"
#include "worker/engine/stage.h"

namespace packtrain {

class CudaSampler {
 public:
  void Plan(DevicePlan* buffers, int vocab_size);
  absl::Status Open();

  // Whether this can choose all tokens that the ubatch asks for, as far as is known before. Not:
  // prompts that are scored, biases, penalties, more than kDecodeRows sequences.
  bool Takes(const Ubatch& ubatch) const;
  // logits [sequences that sample, vocab_size]. Results are in after Finish.
  void Enqueue(CudaRun* run, const Ubatch& ubatch, const float* logits);
  // After the stream has come here. False: some token needs all logits.
  bool Finish(const Ubatch& ubatch);
  void Clear() { outputs_.clear(); }

  const SequenceOutput* output(size_t index) const {
    return index < outputs_.size() && outputs_[index] ? &*outputs_[index] : nullptr;
  }

 private:
  bool FinishRow(int row, const UbatchSequence& sequence, SequenceOutput* output);

  int vocab_size_ = 0;
  int num_best_ = 0;  // of a row, brought to the host by this ubatch
  uint8_t* workspace_ = nullptr;
  cuda::SampledRow* sampled_ = nullptr;  // [kDecodeRows]
  int32_t* best_ids_ = nullptr;          // [kDecodeRows, kMaxBest]
  float* best_logits_ = nullptr;
  std::unique_ptr<PinnedMemory> host_;  // the same three, one behind the other
  std::vector<TokenLogprob> best_;      // of one row
  std::vector<std::optional<SequenceOutput>> outputs_;
};

}  // namespace packtrain

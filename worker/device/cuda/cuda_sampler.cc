#include "worker/device/cuda/cuda_sampler.h"

#include <cuda_runtime_api.h>

#include <algorithm>

#include "common/base/status_macros.h"
#include "worker/ops/sampler.h"

namespace packtrain {
namespace {

constexpr int kMaxBest = 1024;
constexpr size_t kIdsAt = 512, kLogitsAt = kIdsAt + size_t{kDecodeRows} * kMaxBest * 4,
                 kHostBytes = kLogitsAt + size_t{kDecodeRows} * kMaxBest * 4;
static_assert(kDecodeRows <= cuda::kMaxSampleRows);
static_assert(kDecodeRows * sizeof(cuda::SampledRow) <= kIdsAt);

bool Draws(const SamplingParams& params) { return params.temperature > 0.0F; }

// How many of the largest logits the host needs.
int BestNeeded(const UbatchSequence& sequence) {
  const bool filters = Draws(*sequence.sampling) && Sampler::Filters(*sequence.sampling);
  return filters ? kMaxBest : std::max(sequence.top_logprobs, 0);
}

}  // namespace

void CudaSampler::Plan(DevicePlan* buffers, int vocab_size) {
  vocab_size_ = vocab_size;
  buffers->Add(&workspace_, cuda::SampleWorkspaceBytes());
  buffers->Add(&sampled_, kDecodeRows);
  buffers->Add(&best_ids_, size_t{kDecodeRows} * kMaxBest);
  buffers->Add(&best_logits_, size_t{kDecodeRows} * kMaxBest);
}

absl::Status CudaSampler::Open() {
  ASSIGN_OR_RETURN(host_, PinnedMemory::Allocate(kHostBytes));
  return absl::OkStatus();
}

bool CudaSampler::Takes(const Ubatch& ubatch) const {
  int rows = 0;
  for (const UbatchSequence& sequence : ubatch.sequences) {
    if (sequence.logits_all) return false;
    if (!sequence.logits_last) continue;
    if (sequence.sampling == nullptr || !Sampler::KeepsLogits(*sequence.sampling) ||
        BestNeeded(sequence) > kMaxBest) {
      return false;
    }
    ++rows;
  }
  return rows > 0 && rows <= kDecodeRows;
}

void CudaSampler::Enqueue(CudaRun* run, const Ubatch& ubatch, const float* logits) {
  cuda::SampleArgs args;
  args.logits = logits;
  args.n = vocab_size_;
  args.workspace = workspace_;
  args.out = sampled_;
  num_best_ = 0;
  for (const UbatchSequence& sequence : ubatch.sequences) {
    if (!sequence.logits_last) continue;
    const SamplingParams& params = *sequence.sampling;
    args.row[args.rows++] = {.temperature = params.temperature,
                             .draws = Draws(params) && !Sampler::Filters(params),
                             .wants_sums = sequence.top_logprobs >= 0 || params.top_p < 1.0F,
                             .seed = params.seed,
                             .choice = params.choice,
                             .position = static_cast<uint32_t>(sequence.num_ids)};
    num_best_ = std::max(num_best_, BestNeeded(sequence));
  }
  num_best_ = std::min(num_best_, vocab_size_);
  LAUNCH(run, cuda::Sample(args, run->stream));
  LAUNCH(run, cudaMemcpyAsync(host_->data(), sampled_,
                              static_cast<size_t>(args.rows) * sizeof(cuda::SampledRow),
                              cudaMemcpyDeviceToHost, run->stream));
  if (num_best_ == 0) return;
  const size_t bytes = static_cast<size_t>(args.rows) * static_cast<size_t>(num_best_) * 4;
  LAUNCH(run,
         cuda::TopK(logits, args.rows, vocab_size_, nullptr, num_best_, best_ids_, run->stream));
  LAUNCH(run, cuda::Gather(logits, args.rows, vocab_size_, best_ids_, num_best_, best_logits_,
                           run->stream));
  LAUNCH(run, cudaMemcpyAsync(host_->data() + kIdsAt, best_ids_, bytes, cudaMemcpyDeviceToHost,
                              run->stream));
  LAUNCH(run, cudaMemcpyAsync(host_->data() + kLogitsAt, best_logits_, bytes,
                              cudaMemcpyDeviceToHost, run->stream));
}

bool CudaSampler::Finish(const Ubatch& ubatch) {
  outputs_.assign(ubatch.sequences.size(), std::nullopt);
  int row = 0;
  for (size_t i = 0; i < ubatch.sequences.size(); ++i) {
    if (!ubatch.sequences[i].logits_last) continue;
    if (!FinishRow(row++, ubatch.sequences[i], &outputs_[i].emplace())) {
      outputs_.clear();
      return false;
    }
  }
  return true;
}

bool CudaSampler::FinishRow(int row, const UbatchSequence& sequence, SequenceOutput* output) {
  const auto& sampled = reinterpret_cast<const cuda::SampledRow*>(host_->data())[row];
  const SamplingParams& params = *sequence.sampling;
  const size_t at = static_cast<size_t>(row) * static_cast<size_t>(num_best_);
  const auto* ids = reinterpret_cast<const int32_t*>(host_->data() + kIdsAt) + at;
  const auto* logits = reinterpret_cast<const float*>(host_->data() + kLogitsAt) + at;
  best_.clear();
  for (int i = 0; i < num_best_; ++i) best_.push_back({.id = ids[i], .logprob = logits[i]});
  std::sort(best_.begin(), best_.end(), [](const TokenLogprob& a, const TokenLogprob& b) {
    return a.logprob > b.logprob || (a.logprob == b.logprob && a.id < b.id);
  });
  output->token = sampled.id;
  float logit = sampled.logit;
  if (Draws(params) && Sampler::Filters(params)) {
    const std::optional<TokenId> token = Sampler::SampleBest(
        params,
        {.logits = best_, .all = num_best_ == vocab_size_, .relative_sum = sampled.relative_sum},
        static_cast<size_t>(sequence.num_ids));
    if (!token) return false;
    output->token = *token;
    logit = std::find_if(best_.begin(), best_.end(), [&](const TokenLogprob& best) {
              return best.id == *token;
            })->logprob;
  }
  if (sequence.top_logprobs < 0) return true;
  const auto log_probability = [&](float value) {
    return static_cast<float>(value - sampled.log_sum);
  };
  output->logprob = log_probability(logit);
  const auto top = static_cast<size_t>(std::min(sequence.top_logprobs, num_best_));
  for (size_t i = 0; i < top; ++i)
    output->top.push_back({.id = best_[i].id, .logprob = log_probability(best_[i].logprob)});
  return true;
}

}  // namespace packtrain

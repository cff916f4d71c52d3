#include "worker/ops/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "worker/ops/philox.h"

namespace packtrain {
namespace {

constexpr float kImpossible = -std::numeric_limits<float>::infinity();
constexpr float kCertain = std::numeric_limits<float>::max();

// Order without NaN and without an infinity whose difference to itself is NaN.
float Clean(float logit) { return std::isnan(logit) ? kImpossible : std::min(logit, kCertain); }

size_t Index(TokenId id) { return static_cast<size_t>(id); }

// log(sum(exp(logits))), in double.
double LogSumExp(std::span<const float> logits) {
  double max = kImpossible;
  for (float logit : logits) max = std::max<double>(max, Clean(logit));
  double sum = 0;
  for (float logit : logits) sum += std::exp(Clean(logit) - max);
  return max + std::log(sum);
}

// Gumbel-max: the largest is drawn.
double DrawScore(const SamplingParams& params, size_t position, TokenId id, float logit) {
  const auto word = static_cast<uint32_t>(id);
  const std::array<uint32_t, 4> random =
      Philox4x32({word / 4, params.choice, static_cast<uint32_t>(position), 0}, params.seed);
  const double uniform = (random[word % 4] + 0.5) * 0x1p-32;
  return logit / static_cast<double>(params.temperature) - std::log(-std::log(uniform));
}

// Brings the `count` best ids to the front, in order. REQUIRES: count <= last - first.
template <typename Better>
void SortBest(std::vector<TokenId>::iterator first, std::vector<TokenId>::iterator last,
              size_t count, Better better) {
  const auto end = first + static_cast<std::ptrdiff_t>(count);
  if (end != last) std::nth_element(first, end, last, better);
  std::sort(first, end, better);
}

}  // namespace

void Sampler::Penalise(const Input& input) {
  const SamplingParams& params = *input.params;
  for (const LogitBias& bias : params.logit_bias) {
    if (Index(bias.token_id) < logits_.size()) logits_[Index(bias.token_id)] += bias.bias;
  }
  if (params.repetition_penalty != 1.0F) {
    size_t last = input.ids.size();
    if (params.repeat_last_n >= 0) last = std::min(last, static_cast<size_t>(params.repeat_last_n));
    counts_.assign(logits_.size(), 0);
    for (TokenId id : input.ids.last(last)) {
      if (counts_[Index(id)]++ > 0) continue;
      float& logit = logits_[Index(id)];
      logit = logit > 0 ? logit / params.repetition_penalty : logit * params.repetition_penalty;
    }
  }
  if (params.presence_penalty != 0.0F || params.frequency_penalty != 0.0F) {
    const auto prompt = std::min(static_cast<size_t>(input.prompt_tokens), input.ids.size());
    counts_.assign(logits_.size(), 0);
    for (TokenId id : input.ids.subspan(prompt)) ++counts_[Index(id)];
    for (size_t id = 0; id < logits_.size(); ++id) {
      if (counts_[id] == 0) continue;
      logits_[id] -=
          params.presence_penalty + params.frequency_penalty * static_cast<float>(counts_[id]);
    }
  }
  for (float& logit : logits_) logit = Clean(logit);
}

// Leaves in kept_ a prefix of the candidates in order of their logits: each filter is one.
void Sampler::KeepTop(const SamplingParams& params) {
  const auto better = [this](TokenId a, TokenId b) {
    return logits_[Index(a)] > logits_[Index(b)] ||
           (logits_[Index(a)] == logits_[Index(b)] && a < b);
  };
  kept_.resize(logits_.size());
  std::iota(kept_.begin(), kept_.end(), 0);
  if (params.top_k > 0 && static_cast<size_t>(params.top_k) < kept_.size()) {
    SortBest(kept_.begin(), kept_.end(), static_cast<size_t>(params.top_k), better);
    kept_.resize(static_cast<size_t>(params.top_k));
  }
  const double max = *std::max_element(logits_.begin(), logits_.end());
  const auto relative = [&](TokenId id) {  // probability over that of the best
    return std::exp((logits_[Index(id)] - max) / params.temperature);
  };
  double sum = 0;
  if (params.top_p < 1.0F) {
    for (TokenId id : kept_) sum += relative(id);
  }
  if (params.min_p > 0.0F) {
    std::erase_if(kept_, [&](TokenId id) { return relative(id) < params.min_p; });
  }
  if (params.top_p >= 1.0F) return;
  // The prefix is short as a rule, so it is sorted in growing pieces.
  double mass = 0;
  for (size_t sorted = 0, piece = 256; sorted < kept_.size(); piece *= 4) {
    const size_t first = sorted;
    sorted = std::min(first + piece, kept_.size());
    SortBest(kept_.begin() + static_cast<std::ptrdiff_t>(first), kept_.end(), sorted - first,
             better);
    for (size_t i = first; i < sorted; ++i) {
      mass += relative(kept_[i]);
      if (mass < params.top_p * sum) continue;
      kept_.resize(i + 1);
      return;
    }
  }
}

TokenId Sampler::Draw(const SamplingParams& params, size_t position) const {
  TokenId best = kept_[0];
  double best_score = -std::numeric_limits<double>::infinity();
  for (TokenId id : kept_) {
    const double score = DrawScore(params, position, id, logits_[Index(id)]);
    if (score > best_score || (score == best_score && id < best)) {
      best = id;
      best_score = score;
    }
  }
  return best;
}

TokenId Sampler::Sample(const Input& input) {
  const SamplingParams& params = *input.params;
  logits_.assign(input.logits.begin(), input.logits.end());
  Penalise(input);
  if (params.temperature <= 0.0F) {
    return static_cast<TokenId>(std::max_element(logits_.begin(), logits_.end()) - logits_.begin());
  }
  KeepTop(params);
  return Draw(params, input.ids.size());
}

bool Sampler::KeepsLogits(const SamplingParams& params) {
  return params.logit_bias.empty() && params.repetition_penalty == 1.0F &&
         params.presence_penalty == 0.0F && params.frequency_penalty == 0.0F;
}

bool Sampler::Filters(const SamplingParams& params) {
  return params.top_k > 0 || params.top_p < 1.0F || params.min_p > 0.0F;
}

std::optional<TokenId> Sampler::SampleBest(const SamplingParams& params, const Best& best,
                                           size_t num_ids) {
  // As KeepTop; each filter leaves the first of these.
  size_t kept = best.logits.size();
  bool complete = best.all;
  if (params.top_k > 0 && static_cast<size_t>(params.top_k) <= kept) {
    kept = static_cast<size_t>(params.top_k);
    complete = true;
  }
  if (params.top_k > 0 && !complete) return std::nullopt;
  const double max = Clean(best.logits[0].logprob);
  const auto relative = [&](size_t i) {
    return std::exp((Clean(best.logits[i].logprob) - max) / params.temperature);
  };
  double sum = best.relative_sum;
  if (complete && params.top_p < 1.0F) {
    sum = 0;
    for (size_t i = 0; i < kept; ++i) sum += relative(i);
  }
  if (params.min_p > 0.0F) {
    size_t passed = 0;
    while (passed < kept && relative(passed) >= params.min_p) ++passed;
    complete = complete || passed < kept;
    kept = passed;
  }
  if (params.top_p < 1.0F) {
    double mass = 0;
    for (size_t i = 0; i < kept; ++i) {
      mass += relative(i);
      if (mass < params.top_p * sum) continue;
      kept = i + 1;
      complete = true;
      break;
    }
  }
  if (!complete) return std::nullopt;
  TokenId token = best.logits[0].id;
  double highest = -std::numeric_limits<double>::infinity();
  for (size_t i = 0; i < kept; ++i) {
    const TokenId id = best.logits[i].id;
    const double score = DrawScore(params, num_ids, id, Clean(best.logits[i].logprob));
    if (score > highest || (score == highest && id < token)) {
      token = id;
      highest = score;
    }
  }
  return token;
}

float Sampler::Logprob(std::span<const float> logits, TokenId token) {
  return static_cast<float>(Clean(logits[Index(token)]) - LogSumExp(logits));
}

std::vector<TokenLogprob> Sampler::TopLogprobs(std::span<const float> logits, int top) {
  kept_.resize(logits.size());
  std::iota(kept_.begin(), kept_.end(), 0);
  const size_t count = std::min(static_cast<size_t>(std::max(top, 0)), logits.size());
  SortBest(kept_.begin(), kept_.end(), count, [&](TokenId a, TokenId b) {
    const float logit_a = Clean(logits[Index(a)]), logit_b = Clean(logits[Index(b)]);
    return logit_a > logit_b || (logit_a == logit_b && a < b);
  });
  const double normaliser = LogSumExp(logits);
  std::vector<TokenLogprob> result;
  for (size_t i = 0; i < count; ++i) {
    result.push_back({.id = kept_[i],
                      .logprob = static_cast<float>(Clean(logits[Index(kept_[i])]) - normaliser)});
  }
  return result;
}

}  // namespace packtrain

// Aim: a token is drawn from the distribution the parameters describe, and is a function of nothing
// but its arguments. Method: brute force over small vocabularies, frequencies over many positions,
// Philox against its published test vectors.

#include "worker/ops/sampler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <numeric>

#include "worker/ops/philox.h"

namespace packtrain {
namespace {

// Draws at `count` positions of a sequence without history that counts.
std::map<TokenId, int> Frequencies(std::span<const float> logits, const SamplingParams& params,
                                   int count) {
  Sampler sampler;
  std::map<TokenId, int> frequencies;
  std::vector<TokenId> ids;
  for (int i = 0; i < count; ++i) {
    const TokenId id = sampler.Sample({.logits = logits,
                                       .params = &params,
                                       .ids = ids,
                                       .prompt_tokens = static_cast<int32_t>(ids.size())});
    ++frequencies[id];
    ids.push_back(0);
  }
  return frequencies;
}

TokenId SampleOne(std::span<const float> logits, const SamplingParams& params,
                  const std::vector<TokenId>& ids, int prompt_tokens = 0) {
  return Sampler().Sample(
      {.logits = logits, .params = &params, .ids = ids, .prompt_tokens = prompt_tokens});
}

SamplingParams Greedy() {
  SamplingParams params;
  params.temperature = 0;
  return params;
}

// Numbers for tests.
class Philox32 {
 public:
  int Below(int n) {
    return static_cast<int>(Philox4x32({count_++, 0, 0, 0}, 1)[0] % static_cast<uint32_t>(n));
  }

 private:
  uint32_t count_ = 0;
};

size_t Index(int id) { return static_cast<size_t>(id); }

TEST(PhiloxTest, GivesThePublishedTestVectors) {
  using Words = std::array<uint32_t, 4>;
  EXPECT_EQ(Philox4x32({0, 0, 0, 0}, 0), (Words{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(Philox4x32({0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}, ~uint64_t{0}),
            (Words{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(Philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, 0x299f31d0a4093822),
            (Words{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(SamplerTest, FrequenciesFollowTheSoftmax) {
  const std::vector<float> logits = {0.0F, 1.0F, 2.0F, -1.0F, 0.5F};
  for (float temperature : {1.0F, 0.5F, 2.0F}) {
    SamplingParams params;
    params.temperature = temperature;
    params.seed = 11;
    double sum = 0;
    for (float logit : logits) sum += std::exp(logit / temperature);
    constexpr int kDraws = 20000;
    std::map<TokenId, int> got = Frequencies(logits, params, kDraws);
    for (size_t id = 0; id < logits.size(); ++id) {
      const double p = std::exp(logits[id] / temperature) / sum;
      // Five standard deviations; the draws are fixed, so this passes always or never.
      EXPECT_NEAR(got[static_cast<TokenId>(id)], kDraws * p, 5 * std::sqrt(kDraws * p * (1 - p)))
          << "id " << id << " at temperature " << temperature;
    }
  }
}

TEST(SamplerTest, DependsOnSeedChoiceAndPositionAlone) {
  const std::vector<float> logits(50, 0.0F);
  SamplingParams params;
  params.seed = 5;
  const auto draws = [&](const SamplingParams& p) {
    std::vector<TokenId> result, ids;
    for (int i = 0; i < 40; ++i) {
      result.push_back(SampleOne(logits, p, ids));
      ids.push_back(i % 50);
    }
    return result;
  };
  const std::vector<TokenId> first = draws(params);
  EXPECT_EQ(draws(params), first);
  SamplingParams other = params;
  other.choice = 1;
  EXPECT_NE(draws(other), first);
  other = params;
  other.seed = 6;
  EXPECT_NE(draws(other), first);
  EXPECT_GT(Frequencies(logits, params, 40).size(), 10U);
}

TEST(SamplerTest, GreedyTakesTheLowestOfTheBest) {
  EXPECT_EQ(SampleOne(std::vector<float>{1, 3, 3, 2}, Greedy(), {}), 1);
  EXPECT_EQ(SampleOne(std::vector<float>{1, NAN, 0.5F}, Greedy(), {}), 0);
  EXPECT_EQ(SampleOne(std::vector<float>{NAN, NAN}, Greedy(), {}), 0);
  const float inf = std::numeric_limits<float>::infinity();
  EXPECT_EQ(SampleOne(std::vector<float>{1, inf, -inf}, SamplingParams(), {}), 1);
}

TEST(SamplerTest, FiltersKeepWhatTheySay) {
  // Probabilities 0.4, 0.3, 0.2, 0.1, in another order of ids.
  const std::vector<float> logits = {std::log(0.1F), std::log(0.4F), std::log(0.2F),
                                     std::log(0.3F)};
  const auto kept = [&](const SamplingParams& params) {
    std::vector<TokenId> ids;
    for (const auto& [id, count] : Frequencies(logits, params, 400)) ids.push_back(id);
    return ids;
  };
  using Ids = std::vector<TokenId>;
  SamplingParams params;
  EXPECT_EQ(kept(params), (Ids{0, 1, 2, 3}));
  params.top_k = 2;
  EXPECT_EQ(kept(params), (Ids{1, 3}));
  params.top_k = 0;
  params.top_p = 0.69F;
  EXPECT_EQ(kept(params), (Ids{1, 3}));
  params.top_p = 0.71F;
  EXPECT_EQ(kept(params), (Ids{1, 2, 3}));
  params.top_p = 1e-6F;
  EXPECT_EQ(kept(params), (Ids{1}));
  params.top_p = 1.0F;
  params.min_p = 0.45F;
  EXPECT_EQ(kept(params), (Ids{1, 2, 3}));
  params.min_p = 1.0F;
  EXPECT_EQ(kept(params), (Ids{1}));
  // top_p counts within what top_k left: 0.4 / 0.7 < 0.6.
  params.min_p = 0;
  params.top_k = 2;
  params.top_p = 0.6F;
  EXPECT_EQ(kept(params), (Ids{1, 3}));
}

TEST(SamplerTest, TopPOfALargeVocabularyEqualsASort) {
  std::vector<float> logits(5000);
  for (size_t i = 0; i < logits.size(); ++i) {
    logits[i] = static_cast<float>(Philox4x32({static_cast<uint32_t>(i), 0, 0, 0}, 1)[0]) * 1e-9F;
  }
  SamplingParams params;
  params.top_p = 0.5F;
  std::vector<float> sorted = logits;
  std::sort(sorted.rbegin(), sorted.rend());
  double sum = 0, mass = 0;
  for (float logit : sorted) sum += std::exp(logit);
  size_t count = 0;
  while (mass < 0.5 * sum) mass += std::exp(sorted[count++]);
  for (const auto& [id, drawn] : Frequencies(logits, params, 3000)) {
    EXPECT_GE(logits[static_cast<size_t>(id)], sorted[count - 1]);
  }
}

TEST(SamplerTest, PenaltiesAndBiasChangeTheLogits) {
  const std::vector<float> logits = {2.0F, 1.9F, -0.5F, -0.6F};
  SamplingParams params = Greedy();
  params.repetition_penalty = 1.2F;
  EXPECT_EQ(SampleOne(logits, params, {0}), 1) << "a positive logit is divided";
  EXPECT_EQ(SampleOne(std::vector<float>{-1.0F, -1.1F}, params, {0}), 1) << "a negative one grows";
  EXPECT_EQ(SampleOne(logits, params, {0}, 1), 1) << "the prompt counts";
  params.repeat_last_n = 1;
  EXPECT_EQ(SampleOne(logits, params, {0, 3}), 0) << "only the last";
  params.repeat_last_n = 0;
  EXPECT_EQ(SampleOne(logits, params, {0}), 0);

  params = Greedy();
  params.presence_penalty = 0.2F;
  EXPECT_EQ(SampleOne(logits, params, {0}, 1), 0) << "the prompt does not count";
  EXPECT_EQ(SampleOne(logits, params, {0}, 0), 1);
  params.presence_penalty = 0;
  params.frequency_penalty = 0.06F;
  EXPECT_EQ(SampleOne(logits, params, {0}), 0);
  EXPECT_EQ(SampleOne(logits, params, {0, 0}), 1) << "every occurrence counts";

  params = Greedy();
  params.logit_bias = {{0, -100.0F}, {2, 2.5F}};
  EXPECT_EQ(SampleOne(logits, params, {}), 2);
}

TEST(SamplerTest, LogprobsAreThoseOfTheLogits) {
  const std::vector<float> logits = {1.0F, 3.0F, 2.0F, 3.0F};
  double sum = 0;
  for (float logit : logits) sum += std::exp(logit);
  EXPECT_NEAR(Sampler::Logprob(logits, 2), 2.0 - std::log(sum), 1e-6);
  const std::vector<TokenLogprob> top = Sampler().TopLogprobs(logits, 3);
  ASSERT_EQ(top.size(), 3U);
  EXPECT_EQ(top[0].id, 1) << "ties to the lower id";
  EXPECT_EQ(top[1].id, 3);
  EXPECT_EQ(top[2].id, 2);
  EXPECT_NEAR(top[0].logprob, 3.0 - std::log(sum), 1e-6);
  EXPECT_EQ(Sampler().TopLogprobs(logits, 9).size(), 4U);
  EXPECT_TRUE(Sampler().TopLogprobs(logits, 0).empty());
}

TEST(SamplerTest, TheBestLogitsAloneGiveTheSameTokenOrNone) {
  Philox32 random;
  int decided = 0;
  for (int round = 0; round < 400; ++round) {
    const int vocab = 300;
    std::vector<float> logits(vocab);
    for (float& logit : logits) logit = static_cast<float>(random.Below(1000)) * 0.01F;
    SamplingParams params;
    params.temperature = 0.3F + 0.1F * static_cast<float>(random.Below(10));
    params.seed = static_cast<uint64_t>(round);
    if (random.Below(2) != 0) params.top_k = 1 + random.Below(60);
    if (random.Below(2) != 0) params.top_p = 0.05F + 0.09F * static_cast<float>(random.Below(10));
    if (random.Below(2) != 0) params.min_p = 0.1F * static_cast<float>(random.Below(10));
    std::vector<TokenLogprob> best;
    double sum = 0;
    for (int id = 0; id < vocab; ++id) best.push_back({.id = id, .logprob = logits[Index(id)]});
    std::sort(best.begin(), best.end(), [](const TokenLogprob& a, const TokenLogprob& b) {
      return a.logprob > b.logprob || (a.logprob == b.logprob && a.id < b.id);
    });
    for (float logit : logits) {
      sum += std::exp((logit - static_cast<double>(best[0].logprob)) / params.temperature);
    }
    const bool all = random.Below(4) == 0;
    if (!all) best.resize(1 + Index(random.Below(100)));
    const std::vector<TokenId> ids(Index(random.Below(50)));
    const std::optional<TokenId> token =
        Sampler::SampleBest(params, {.logits = best, .all = all, .relative_sum = sum}, ids.size());
    EXPECT_TRUE(token || !all);
    if (!token) continue;
    ++decided;
    EXPECT_EQ(*token, SampleOne(logits, params, ids)) << "round " << round;
  }
  EXPECT_GT(decided, 150);
}

}  // namespace
}  // namespace packtrain

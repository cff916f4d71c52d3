// Aim: the same request gives the same bits however it is cut up: over prefill chunks, threads,
// stages, experts workers, batch neighbours, pages and snapshots. Method: golden models, logits of
// all positions compared bit for bit with those of one chunk on one thread. That these are also
// right is the business of models_test.

#include <gtest/gtest.h>

#include <algorithm>

#include "tests/support/model_golden.h"
#include "tests/support/model_runner.h"
#include "worker/kernels/cpu/isa.h"

namespace packtrain {
namespace {

constexpr int kWhole = 512;

std::string ModelPath(const std::string& name) {
  return PACKTRAIN_BINARY_DIR "/golden_models/" + name + ".gguf";
}

std::vector<TokenId> PromptIds(const std::string& name, const std::string& prompt) {
  const ModelGolden golden =
      ReadModelGolden(PACKTRAIN_SOURCE_DIR "/tests/golden/models/golden/" + name, "f32");
  for (const GoldenPrompt& p : golden.prompts) {
    if (p.name == prompt) return p.ids;
  }
  return {};
}

class ExactnessTest : public testing::TestWithParam<const char*> {
 protected:
  ExactnessTest()
      : model_(ModelPath(GetParam())),
        ids_(PromptIds(GetParam(), "len200")),
        vocab_(static_cast<size_t>(model_.config.vocab_size)) {}

  std::vector<float> Reference(KvCacheType type = KvCacheType::kF32) {
    return ModelRunner(model_, {.kv_cache = type}).Prefill(ids_, 0, kWhole);
  }

  TestModel model_;
  std::vector<TokenId> ids_;
  size_t vocab_;
};

TEST_P(ExactnessTest, ChunksAndThreadsDoNotMatter) {
  const std::vector<float> wanted = Reference();
  for (int threads : {1, 2, 3}) {
    ModelRunner runner(model_, {.threads = threads});
    for (int chunk : {1, 7, 64, kWhole}) {
      EXPECT_EQ(runner.Prefill(ids_, 0, chunk), wanted)
          << threads << " threads, chunks of " << chunk;
    }
  }
}

TEST_P(ExactnessTest, CutsBetweenStagesDoNotMatter) {
  const std::vector<float> wanted = Reference();
  std::vector<int> everywhere;
  for (int layer = 1; layer < model_.config.num_layers; ++layer) everywhere.push_back(layer);
  ModelRunner runner(model_, {.cuts = everywhere});
  EXPECT_EQ(runner.Prefill(ids_, 0, kWhole), wanted);
  EXPECT_EQ(runner.Prefill(ids_, 0, 7), wanted);
}

TEST_P(ExactnessTest, WhereExpertsAreComputedDoesNotMatter) {
  ModelRunner runner(model_, {.threads = 2, .remote_experts = true});
  EXPECT_EQ(runner.Prefill(ids_, 0, 64), Reference());
}

TEST_P(ExactnessTest, EveryCacheTypeIsExactOverChunks) {
  for (KvCacheType type : {KvCacheType::kF16, KvCacheType::kQ8_0, KvCacheType::kQ4_1}) {
    const std::vector<float> wanted = Reference(type);
    ModelRunner runner(model_, {.threads = 2, .kv_cache = type});
    EXPECT_EQ(runner.Prefill(ids_, 0, 7), wanted) << static_cast<int>(type);
    EXPECT_NE(wanted, Reference()) << "the cache does not round";
  }
}

// Two long sequences decode and prefill side by side with a third; each as if it were alone.
TEST_P(ExactnessTest, NeighboursInTheBatchDoNotMatter) {
  const std::vector<float> wanted = Reference();
  ModelRunner runner(model_, {.threads = 2, .num_slots = 3});
  const std::vector<TokenId> other = PromptIds(GetParam(), "chat");
  std::vector<float> first, second;
  size_t done[3] = {};
  for (int step = 0; done[0] < ids_.size() || done[1] < ids_.size(); ++step) {
    std::vector<SlotRows> batch;
    const size_t wish[3] = {5, step % 3 == 0 ? size_t{0} : size_t{11},
                            step % 2 == 0 ? size_t{1} : size_t{0}};
    for (size_t slot : {size_t{2}, size_t{1}, size_t{0}}) {
      const std::vector<TokenId>& ids = slot == 2 ? other : ids_;
      const size_t rows = std::min(wish[slot], ids.size() - done[slot]);
      if (rows == 0) continue;
      const auto begin = ids.begin() + static_cast<std::ptrdiff_t>(done[slot]);
      batch.push_back({.slot = static_cast<int>(slot),
                       .start = static_cast<int>(done[slot]),
                       .tokens = {begin, begin + static_cast<std::ptrdiff_t>(rows)}});
    }
    if (batch.empty()) continue;
    std::span<const float> logits = runner.Step(batch);
    for (const SlotRows& rows : batch) {
      const size_t count = rows.tokens.size() * vocab_;
      std::vector<float>* out = rows.slot == 0 ? &first : &second;
      if (rows.slot < 2)
        out->insert(out->end(), logits.begin(),
                    logits.begin() + static_cast<std::ptrdiff_t>(count));
      logits = logits.subspan(count);
      done[rows.slot] += rows.tokens.size();
    }
  }
  EXPECT_EQ(first, wanted);
  EXPECT_EQ(second, wanted);
}

// A prefix is computed in one slot; another takes over its pages, a copy of the last one, and its
// snapshot, and goes on differently while the first goes on too.
TEST_P(ExactnessTest, ASharedPrefixGivesTheSameBitsAsItsOwn) {
  constexpr int kShared = 100;
  const std::vector<float> wanted = Reference();
  const std::span<const TokenId> ids(ids_);
  ModelRunner runner(model_, {.num_slots = 2, .num_snapshots = 1});
  const SlotRows prefix = {
      .slot = 0, .start = 0, .tokens = {ids.begin(), ids.begin() + kShared}, .save_snapshot = 0};
  runner.Step({&prefix, 1});

  std::vector<int32_t> pages(runner.pages(1).begin(), runner.pages(1).end());
  const PageCopy copy = {.from = runner.pages(0)[1], .to = pages[1]};
  pages[0] = runner.pages(0)[0];
  UbatchSequence other;
  other.slot = 1;
  other.start = kShared;
  other.rows = 1;
  const TokenId different = ids_[0];
  other.tokens = {&different, 1};
  other.pages = pages;
  other.restore_snapshot = 0;
  Ubatch ubatch;
  ubatch.page_copies = {&copy, 1};
  ubatch.sequences = {&other, 1};
  ubatch.rows = 1;
  runner.Run(ubatch);

  // The first is not disturbed by the other's token at the same position.
  const std::vector<float> rest = runner.Prefill(ids.subspan(kShared), kShared, kWhole);
  EXPECT_TRUE(std::equal(rest.begin(), rest.end(),
                         wanted.begin() + static_cast<std::ptrdiff_t>(kShared * vocab_)));

  // The other, taken back to the snapshot, continues as the first did.
  other.tokens = ids.subspan(kShared);
  other.rows = static_cast<int32_t>(other.tokens.size());
  other.logits_all = true;
  ubatch.page_copies = {};
  ubatch.rows = other.rows;
  runner.Run(ubatch);
  EXPECT_TRUE(std::equal(runner.logits().begin(), runner.logits().end(),
                         wanted.begin() + static_cast<std::ptrdiff_t>(kShared * vocab_)));
}

INSTANTIATE_TEST_SUITE_P(All, ExactnessTest,
                         testing::Values("deepseek2-f32", "deepseek32-f32", "glm4moe-f32",
                                         "glm5-f32", "glm52-f32", "qwen35moe-f32", "qwen3moe-f32"),
                         [](const auto& test) {
                           std::string name = test.param;
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

// The kernels that vector units have, with weights of many types; what they round is their own
// business, but it must not depend on how the work is cut up.
TEST(QuantisedExactnessTest, EveryInstructionSetIsExact) {
  for (const std::string name : {"glm52-wide", "qwen35moe-wide"}) {
    const std::string folder = PACKTRAIN_SOURCE_DIR "/tests/golden/models/";
    const TestModel model(folder + name + ".gguf");
    const std::vector<TokenId> ids =
        ReadModelGolden(folder + "golden/" + name, "deq-f32").prompts[3].ids;
    for (const Isa variant : kAllIsas) {
      if (!IsaSupported(variant)) continue;
      const std::string isa(IsaName(variant));
      const std::vector<float> wanted = ModelRunner(model, {.isa = isa}).Prefill(ids, 0, kWhole);
      ModelRunner runner(model, {.threads = 3, .cuts = {3}, .isa = isa});
      for (int chunk : {1, 7}) {
        EXPECT_EQ(runner.Prefill(ids, 0, chunk), wanted) << name << " " << isa << " " << chunk;
      }
    }
  }
}

// Beyond top_k keys the choice matters: with another one the goldens do not hold.
TEST(SparseAttentionTest, DenseAttentionWouldFailTheGoldens) {
  const std::vector<TokenId> ids = PromptIds("glm52-f32", "len64");
  TestModel model(ModelPath("glm52-f32"));
  const auto vocab = static_cast<size_t>(model.config.vocab_size);
  const auto top_k = static_cast<size_t>(model.config.indexer.top_k);
  const std::vector<float> sparse = ModelRunner(model, {}).Prefill(ids, 0, kWhole);
  const auto largest_difference = [&](int other_top_k, size_t first, size_t last) {
    TestModel other(ModelPath("glm52-f32"));
    other.config.indexer.top_k = other_top_k;
    const std::vector<float> logits = ModelRunner(other, {}).Prefill(ids, 0, kWhole);
    float largest = 0;
    for (size_t i = first * vocab; i < last * vocab; ++i) {
      largest = std::max(largest, std::abs(logits[i] - sparse[i]));
    }
    return largest;
  };
  const int dense = static_cast<int>(ids.size());
  EXPECT_EQ(largest_difference(dense, 0, top_k), 0.0F) << "up to top_k keys both see all";
  EXPECT_GT(largest_difference(dense, top_k, ids.size()), 1.0F);
  EXPECT_GT(largest_difference(static_cast<int>(top_k) - 1, top_k, ids.size()), 1.0F);
}

}  // namespace
}  // namespace packtrain

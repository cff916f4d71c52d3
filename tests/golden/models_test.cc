// Aim: the logits and the text of every model equal those of a peer implementation that was run
// with f32 activations and an f32 cache. Method: tiny models with random weights, all positions of
// seven prompts, 48 greedy tokens after each.

#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <filesystem>

#include "tests/support/model_golden.h"
#include "tests/support/model_runner.h"
#include "worker/kernels/cpu/isa.h"
#include "worker/ops/sampler.h"

namespace packtrain {
namespace {

// The peer agrees with a float64 computation to 1e-4; the bound is the one its goldens state.
constexpr float kTolerance = 1e-3F;

struct Case {
  std::string name;
  std::string model;      // path of the .gguf
  std::string directory;  // of its goldens
  std::string configuration;
};

void PrintTo(const Case& c, std::ostream* out) { *out << c.name; }

// The models of the tree: quantised ones as files, F32 ones made by the build. With
// PACKTRAIN_GOLDEN_DIR: all of that folder (NAME.gguf, golden/NAME/) instead.
std::vector<Case> Cases() {
  std::string goldens = PACKTRAIN_SOURCE_DIR "/tests/golden/models";
  std::vector<std::string> folders = {goldens, PACKTRAIN_BINARY_DIR "/golden_models"};
  if (const char* from = std::getenv("PACKTRAIN_GOLDEN_DIR"); from != nullptr) {
    goldens = from;
    folders = {goldens};
  }
  std::vector<Case> cases;
  for (const std::string& folder : folders) {
    for (const auto& entry : std::filesystem::directory_iterator(folder)) {
      if (entry.path().extension() != ".gguf") continue;
      const std::string name = entry.path().stem().string();
      const bool f32 = name.find("f32") != std::string::npos;
      cases.push_back(
          {name, entry.path().string(), goldens + "/golden/" + name, f32 ? "f32" : "deq-f32"});
    }
  }
  std::sort(cases.begin(), cases.end(),
            [](const Case& a, const Case& b) { return a.name < b.name; });
  return cases;
}

class ModelsTest : public testing::TestWithParam<Case> {
 protected:
  ModelsTest()
      : model_(GetParam().model, TestWeights::kDequantised),
        golden_(ReadModelGolden(GetParam().directory, GetParam().configuration)),
        vocab_(static_cast<size_t>(model_.config.vocab_size)) {}

  std::span<const float> Row(const std::vector<float>& logits, size_t row) const {
    return std::span(logits).subspan(row * vocab_, vocab_);
  }

  TestModel model_;
  ModelGolden golden_;
  size_t vocab_;
};

TEST_P(ModelsTest, LogitsOfEveryPositionAreThePeers) {
  // The peer's activations are f32; on quantised weights only the scalar kernels' are.
  const TestModel stored(
      GetParam().model, TestIsa() == "scalar" ? TestWeights::kAsStored : TestWeights::kDequantised);
  ModelRunner runner(stored, {});
  float worst = 0;
  for (size_t p = 0; p < golden_.prompts.size(); ++p) {
    const GoldenPrompt& prompt = golden_.prompts[p];
    const std::vector<float> logits = runner.Prefill(prompt.ids, 0, 512);
    for (size_t i = 0; i < prompt.ids.size(); ++i) {
      const uint16_t* ids = golden_.top_ids.row(prompt.row_offset + i);
      const float* wanted = golden_.top_logits.row(prompt.row_offset + i);
      for (size_t k = 0; k < 20; ++k) {
        const float difference = std::abs(Row(logits, i)[ids[k]] - wanted[k]);
        ASSERT_LE(difference, kTolerance) << prompt.name << " position " << i << " id " << ids[k];
        worst = std::max(worst, difference);
      }
    }
    const float* wanted = golden_.last_logits.row(p);
    const std::span<const float> last = Row(logits, prompt.ids.size() - 1);
    for (size_t id = 0; id < vocab_; ++id) {
      const float difference = std::abs(last[id] - wanted[id]);
      ASSERT_LE(difference, kTolerance) << prompt.name << " last position, id " << id;
      worst = std::max(worst, difference);
    }
  }
  RecordProperty("largest_difference", std::to_string(worst));
  std::cout << GetParam().name << ": largest logit difference " << worst << "\n";
}

TEST_P(ModelsTest, GreedyTextIsThePeers) {
  ModelRunner runner(model_, {});
  for (const GoldenPrompt& prompt : golden_.prompts) {
    std::vector<float> logits = runner.Prefill(prompt.ids, 0, 512);
    std::span<const float> last = Row(logits, prompt.ids.size() - 1);
    for (size_t i = 0; i < prompt.greedy_ids.size(); ++i) {
      if (prompt.greedy_margins[i] > kTolerance) {
        ASSERT_EQ(ArgMax(last), prompt.greedy_ids[i]) << prompt.name << " token " << i;
      }
      const SlotRows next = {.start = static_cast<int>(prompt.ids.size() + i),
                             .tokens = {prompt.greedy_ids[i]}};
      last = runner.Step({&next, 1});
    }
  }
}

TEST_P(ModelsTest, LogprobsOfALongerTextAreThePeers) {
  ModelRunner runner(model_, {});
  const std::vector<float> logits = runner.Prefill(golden_.text_ids, 0, 512);
  for (size_t i = 0; i + 1 < golden_.text_ids.size(); ++i) {
    EXPECT_NEAR(Sampler::Logprob(Row(logits, i), golden_.text_ids[i + 1]),
                golden_.text_logprobs.values[i], kTolerance)
        << "position " << i;
  }
}

TEST_P(ModelsTest, DequantisedWeightsGiveTheSameBits) {
  const TestModel stored(GetParam().model);
  ModelRunner quantised(stored, {.isa = "scalar"}), plain(model_, {.isa = "scalar"});
  const std::vector<TokenId>& ids = golden_.prompts[2].ids;
  EXPECT_EQ(quantised.Prefill(ids, 0, 512), plain.Prefill(ids, 0, 512));
}

TEST_P(ModelsTest, DraftsAreThePeers) {
  if (!golden_.has_mtp) GTEST_SKIP() << "the model has no MTP block";
  const auto dim = static_cast<size_t>(model_.config.hidden_dim);
  ModelRunner trunk(model_, {});
  MtpRunner mtp(model_, {});
  for (size_t p = 0; p < golden_.prompts.size(); ++p) {
    const GoldenPrompt& prompt = golden_.prompts[p];
    trunk.Prefill(prompt.ids, 0, 512);
    std::vector<float> hidden(dim, 0.0F);  // of the position before the first
    hidden.insert(hidden.end(), trunk.final_hidden().begin(), trunk.final_hidden().end());
    const std::vector<float> last(hidden.end() - static_cast<std::ptrdiff_t>(dim), hidden.end());
    hidden.resize(prompt.ids.size() * dim);
    std::span<const float> logits = mtp.Step(0, prompt.ids, hidden);
    for (size_t i = 0; i < prompt.ids.size(); ++i) {
      for (size_t k = 0; k < 5; ++k) {
        EXPECT_NEAR(logits[i * vocab_ + golden_.mtp_top_ids.row(prompt.row_offset + i)[k]],
                    golden_.mtp_top_logits.row(prompt.row_offset + i)[k], kTolerance)
            << prompt.name << " position " << i;
      }
    }
    hidden = last;
    for (size_t step = 0; step < golden_.drafts[p].size(); ++step) {
      const GoldenDraft& draft = golden_.drafts[p][step];
      logits = mtp.Step(static_cast<int>(prompt.ids.size() + step), {&draft.input, 1}, hidden);
      if (draft.margin > kTolerance) {
        EXPECT_EQ(ArgMax(logits), draft.draft) << prompt.name << " draft " << step;
      }
      for (size_t id = 0; step == 0 && id < vocab_; ++id) {
        ASSERT_NEAR(logits[id], golden_.mtp_logits.row(p)[id], kTolerance) << prompt.name;
      }
      hidden.assign(mtp.final_hidden().begin(), mtp.final_hidden().end());
    }
  }
}

// log p of every id.
std::vector<double> LogSoftmax(std::span<const float> logits) {
  const double largest = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (float logit : logits) sum += std::exp(logit - largest);
  std::vector<double> log_p(logits.begin(), logits.end());
  for (double& value : log_p) value -= largest + std::log(sum);
  return log_p;
}

double KlDivergence(std::span<const float> from, std::span<const float> to) {
  const std::vector<double> p = LogSoftmax(from), q = LogSoftmax(to);
  double kl = 0;
  for (size_t i = 0; i < p.size(); ++i) kl += std::exp(p[i]) * (p[i] - q[i]);
  return kl;
}

// How far the peer is from itself when it rounds activations to 8 bits, as its goldens report:
// positions where another id is best, and the mean KL divergence.
struct RoundingBound {
  double changes = 0.08, kl = 0.07;
};
RoundingBound BoundOf(const std::string& model) {
  if (model == "qwen35moe-iq2") return {.changes = 0.17, .kl = 0.2};
  return {};
}

// Vector kernels round activations to 8 bits, as the peer does in its configuration `f32`. Every
// position is compared over the 20 ids that are recorded, the last of each prompt over all.
TEST_P(ModelsTest, RoundedActivationsAreAsCloseAsThePeers) {
  if (GetParam().configuration == "f32") GTEST_SKIP() << "nothing is rounded with F32 weights";
  const RoundingBound bound = BoundOf(GetParam().name);
  const std::string& directory = GetParam().directory;
  const auto ids = ReadNpyU16(directory + "/top20_f32_ids.npy");
  const auto values = ReadNpyF32(directory + "/top20_f32_logits.npy");
  const auto last_values = ReadNpyF32(directory + "/logits_f32.npy");
  const TestModel stored(GetParam().model);
  for (const Isa variant : kAllIsas) {
    if (variant == Isa::kScalar || !IsaSupported(variant)) continue;  // scalar rounds nothing
    const std::string isa(IsaName(variant));
    ModelRunner runner(stored, {.isa = isa});
    double kl = 0, last_kl = 0;
    int changes = 0, positions = 0;
    for (size_t p = 0; p < golden_.prompts.size(); ++p) {
      const GoldenPrompt& prompt = golden_.prompts[p];
      const std::vector<float> logits = runner.Prefill(prompt.ids, 0, 512);
      for (size_t i = 0; i < prompt.ids.size(); ++i) {
        const uint16_t* top = ids.row(prompt.row_offset + i);
        std::vector<float> ours;
        for (size_t k = 0; k < 20; ++k) ours.push_back(Row(logits, i)[top[k]]);
        kl += KlDivergence({values.row(prompt.row_offset + i), 20}, ours);
        changes += ArgMax(Row(logits, i)) == top[0] ? 0 : 1;
        ++positions;
      }
      last_kl += KlDivergence({last_values.row(p), vocab_}, Row(logits, prompt.ids.size() - 1));
    }
    kl /= positions;
    last_kl /= static_cast<double>(golden_.prompts.size());
    std::cout << GetParam().name << " " << isa << ": mean KL " << kl << ", of last positions "
              << last_kl << "; another best id at " << changes << " of " << positions << "\n";
    EXPECT_LE(kl, bound.kl) << isa;
    EXPECT_LE(changes, bound.changes * positions) << isa;
  }
}

INSTANTIATE_TEST_SUITE_P(All, ModelsTest, testing::ValuesIn(Cases()), [](const auto& test) {
  std::string name = test.param.name;
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
});

}  // namespace
}  // namespace packtrain

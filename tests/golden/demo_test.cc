// Aim: the demo models write what their card shows. Method: the prompts of
// deploy/demo/goldens.json, greedy, against the ids another implementation chose with rounded
// activations and an f16 cache; at a near-tie of ours both continuations are right, and we go on
// from the golden one.

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "tests/support/model_runner.h"
#include "tests/support/test_files.h"

namespace packtrain {
namespace {

constexpr char kDirectory[] = PACKTRAIN_SOURCE_DIR "/deploy/demo/";
// Logits of that implementation differ from ours by about this much.
constexpr float kNearTie = 0.5F;

void ExpectGoldenTexts(const std::string& which) {
  const auto golden =
      nlohmann::json::parse(ReadFileOrDie(std::string(kDirectory) + "goldens.json"));
  const TestModel model(kDirectory + which + ".gguf");
  const auto vocab = static_cast<size_t>(model.config.vocab_size);
  ModelRunner runner(model, {.threads = 2, .context = 2048});
  int tokens = 0, ties = 0, texts = 0, equal_texts = 0;
  for (const auto& text : golden.at(which).at("cases")) {
    const std::vector<TokenId> prompt = text.at("prompt_ids");
    const std::vector<TokenId> wanted = text.at("greedy_ids");
    std::vector<float> logits = runner.Prefill(prompt, 0, 512);
    std::span<const float> last = std::span(logits).last(vocab);
    bool equal = true;
    for (size_t i = 0; i < wanted.size(); ++i, ++tokens) {
      const TokenId best = ArgMax(last);
      if (best != wanted[i]) {
        const float margin = last[static_cast<size_t>(best)] - last[static_cast<size_t>(wanted[i])];
        EXPECT_LT(margin, kNearTie) << text.value("prompt", "") << " token " << i << ": " << best
                                    << ", golden " << wanted[i];
        ++ties;
        equal = false;
      }
      const SlotRows next = {.start = static_cast<int>(prompt.size() + i), .tokens = {wanted[i]}};
      last = runner.Step({&next, 1});
    }
    ++texts;
    equal_texts += equal ? 1 : 0;
  }
  std::cout << which << ": " << equal_texts << " of " << texts << " texts equal, " << ties << " of "
            << tokens << " tokens differ at near-ties\n";
}

TEST(DemoTest, PrimaryWritesItsGoldenTexts) { ExpectGoldenTexts("primary"); }
TEST(DemoTest, SidecarWritesItsGoldenTexts) { ExpectGoldenTexts("sidecar"); }

}  // namespace
}  // namespace packtrain

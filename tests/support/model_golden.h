#pragma once

// What a peer implementation computed from a model: see tests/golden/models/README.md.

#include <string>
#include <vector>

#include "common/model/token.h"
#include "tests/support/npy.h"

namespace packtrain {

struct GoldenPrompt {
  std::string name;
  std::vector<TokenId> ids;
  size_t row_offset = 0;  // of its first position in the arrays over all positions
  std::vector<TokenId> greedy_ids;
  std::vector<float> greedy_margins;  // best minus second best logit
};

struct GoldenDraft {
  TokenId input = 0;
  TokenId draft = 0;
  float margin = 0;
};

struct ModelGolden {
  std::vector<GoldenPrompt> prompts;
  NpyArray<float> last_logits;    // [prompts, vocab]
  NpyArray<uint16_t> top_ids;     // [positions, 20]
  NpyArray<float> top_logits;     // [positions, 20]
  std::vector<TokenId> text_ids;  // a longer text ...
  NpyArray<float> text_logprobs;  // [text_ids - 1] ... and log p(id | those before)

  bool has_mtp = false;
  NpyArray<float> mtp_logits;                    // [prompts, vocab] of the first draft
  NpyArray<uint16_t> mtp_top_ids;                // [positions, 5]
  NpyArray<float> mtp_top_logits;                // [positions, 5]
  std::vector<std::vector<GoldenDraft>> drafts;  // per prompt
};

// Reads the goldens of one configuration of the peer, e.g. "f32". CHECKs that they are there.
ModelGolden ReadModelGolden(const std::string& directory, const std::string& configuration);

}  // namespace packtrain

#pragma once

// The vocabulary of FakeStages: no text, one end token.

#include <string_view>
#include <vector>

#include "coordinator/tokenizer/tokenizer.h"
#include "tests/sim/fake_stages.h"

namespace packtrain {

class NumberTokenizer : public Tokenizer {
 public:
  std::vector<TokenId> Encode(std::string_view, EncodeOptions) const override { return {}; }
  std::string_view Piece(TokenId, bool) const override { return ""; }
  int vocab_size() const override { return kFakeVocab; }
  TokenKind kind(TokenId) const override { return TokenKind::kNormal; }
  bool IsEndOfGeneration(TokenId id) const override { return id == kFakeEnd; }
  TokenId bos() const override { return -1; }
  TokenId eos() const override { return kFakeEnd; }
  bool add_bos() const override { return false; }
  bool strips_leading_space() const override { return false; }
};

}  // namespace packtrain

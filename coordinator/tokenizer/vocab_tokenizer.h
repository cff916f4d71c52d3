#pragma once

// What the two kinds of tokenizer share: the token table, whole-string tokens and BOS/EOS.
// Private to this folder.

#include <string>
#include <string_view>
#include <vector>

#include "coordinator/tokenizer/special_splitter.h"
#include "coordinator/tokenizer/tokenizer.h"
#include "coordinator/tokenizer/vocabulary.h"

namespace packtrain {

class VocabTokenizer : public Tokenizer {
 public:
  std::vector<TokenId> Encode(std::string_view text, EncodeOptions options) const final;
  std::string_view Piece(TokenId id, bool show_special) const final;
  int vocab_size() const final { return vocabulary_.size(); }
  TokenKind kind(TokenId id) const final { return vocabulary_.kinds.at(static_cast<size_t>(id)); }
  bool IsEndOfGeneration(TokenId id) const final {
    return vocabulary_.end_of_generation.at(static_cast<size_t>(id));
  }
  TokenId bos() const final { return vocabulary_.bos; }
  TokenId eos() const final { return vocabulary_.eos; }
  bool add_bos() const final { return vocabulary_.add_bos; }

 protected:
  // `pieces` are the bytes of every token, specials included.
  VocabTokenizer(Vocabulary vocabulary, std::vector<std::string> pieces)
      : vocabulary_(std::move(vocabulary)), splitter_(vocabulary_), pieces_(std::move(pieces)) {}

  const Vocabulary& vocabulary() const { return vocabulary_; }

  // Appends the tokens of text that holds no whole-string token. `fresh`: at the start of the text
  // or after a whole-string token.
  virtual void EncodeText(std::string_view text, bool fresh, std::vector<TokenId>* ids) const = 0;

 private:
  const Vocabulary vocabulary_;
  const SpecialSplitter splitter_;
  const std::vector<std::string> pieces_;
};

}  // namespace packtrain

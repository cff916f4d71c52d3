#pragma once

// SentencePiece BPE by scores ("llama"). Private to this folder.

#include <array>
#include <memory>

#include "absl/container/flat_hash_map.h"
#include "coordinator/tokenizer/vocab_tokenizer.h"

namespace packtrain {

class SpmTokenizer : public VocabTokenizer {
 public:
  static absl::StatusOr<std::unique_ptr<Tokenizer>> Create(const GgufFile& file);

  bool strips_leading_space() const override { return tables_.add_space_prefix; }

 protected:
  void EncodeText(std::string_view text, bool fresh, std::vector<TokenId>* ids) const override;

 private:
  struct Tables {
    std::vector<float> scores;
    std::array<TokenId, 256> byte_tokens{};  // -1: none
    bool add_space_prefix = true;
  };

  SpmTokenizer(Vocabulary vocabulary, std::vector<std::string> pieces, Tables tables);

  // -1 if there is none.
  TokenId Find(std::string_view text) const;
  void AppendTokens(std::string_view symbol, std::vector<TokenId>* ids) const;

  const Tables tables_;
  // Text to token, of the tokens that text can become. Views of the vocabulary.
  absl::flat_hash_map<std::string_view, TokenId> ids_;
  size_t text_size_max_ = 0;  // of the above
};

}  // namespace packtrain

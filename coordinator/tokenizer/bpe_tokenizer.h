#pragma once

// Byte-level BPE ("gpt2"). Private to this folder.

#include <array>
#include <memory>

#include "absl/container/flat_hash_map.h"
#include "coordinator/tokenizer/pre_tokenizer.h"
#include "coordinator/tokenizer/vocab_tokenizer.h"

namespace packtrain {

class BpeTokenizer : public VocabTokenizer {
 public:
  static absl::StatusOr<std::unique_ptr<Tokenizer>> Create(const GgufFile& file);

  bool strips_leading_space() const override { return false; }

 protected:
  void EncodeText(std::string_view text, bool fresh, std::vector<TokenId>* ids) const override;

 private:
  // A string that merging can produce: the tokens by their ids, then strings that stand in merges
  // only, then bytes that no token stands for.
  using Symbol = int32_t;
  struct Merge {
    int32_t rank;
    Symbol result;
  };
  class Builder;

  // Everything but the vocabulary.
  struct Tables {
    std::array<Symbol, 256> byte_symbols{};
    absl::flat_hash_map<uint64_t, Merge> merges;  // key: PairKey
    std::vector<std::string> other_symbols;       // bytes of the symbols beyond the vocabulary
    std::unique_ptr<PreTokenizer> pre_tokenizer;
  };

  BpeTokenizer(Vocabulary vocabulary, std::vector<std::string> pieces, Tables tables);

  static uint64_t PairKey(Symbol left, Symbol right) {
    return uint64_t{static_cast<uint32_t>(left)} << 32 | static_cast<uint32_t>(right);
  }

  void EncodePiece(std::string_view piece, std::vector<TokenId>* ids) const;
  void AppendTokens(Symbol symbol, std::vector<TokenId>* ids) const;

  const Tables tables_;
  // Bytes to token, with ignore_merges only. Views of the pieces.
  absl::flat_hash_map<std::string_view, TokenId> whole_;
};

}  // namespace packtrain

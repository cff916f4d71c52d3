#include "coordinator/tokenizer/vocab_tokenizer.h"

namespace packtrain {

std::vector<TokenId> VocabTokenizer::Encode(std::string_view text, EncodeOptions options) const {
  const std::vector<SpecialSplitter::Fragment> fragments =
      splitter_.Split(text, options.parse_special);
  std::vector<TokenId> ids;
  if (options.add_special && add_bos() && bos() >= 0) ids.push_back(bos());
  bool fresh = true;
  for (const SpecialSplitter::Fragment& fragment : fragments) {
    if (fragment.special >= 0) {
      ids.push_back(fragment.special);
    } else {
      EncodeText(fragment.text, fresh, &ids);
    }
    fresh = fragment.special >= 0;
  }
  if (options.add_special && vocabulary_.add_eos && eos() >= 0) ids.push_back(eos());
  return ids;
}

std::string_view VocabTokenizer::Piece(TokenId id, bool show_special) const {
  const TokenKind its_kind = kind(id);
  const bool special = its_kind == TokenKind::kControl || its_kind == TokenKind::kUnknown;
  if (its_kind == TokenKind::kUnused || (special && !show_special)) return "";
  return pieces_[static_cast<size_t>(id)];
}

}  // namespace packtrain

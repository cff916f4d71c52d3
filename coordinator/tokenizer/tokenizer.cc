#include "coordinator/tokenizer/tokenizer.h"

#include "absl/strings/str_format.h"
#include "common/base/status_macros.h"
#include "coordinator/tokenizer/bpe_tokenizer.h"
#include "coordinator/tokenizer/spm_tokenizer.h"
#include "coordinator/tokenizer/utf8.h"
#include "coordinator/tokenizer/vocabulary.h"

namespace packtrain {
namespace {

constexpr std::string_view kReplacement = "\xEF\xBF\xBD";  // U+FFFD

}  // namespace

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::Create(const GgufFile& file) {
  ASSIGN_OR_RETURN(const std::string_view model, file.GetString("tokenizer.ggml.model"));
  if (model == "gpt2") return BpeTokenizer::Create(file);
  if (model == "llama") return SpmTokenizer::Create(file);
  return TokenizerError(file, "tokenizer.ggml.model",
                        absl::StrFormat("\"%s\", known are gpt2 (byte-level BPE) and llama "
                                        "(SentencePiece)",
                                        PrintableText(model)));
}

std::vector<TokenId> Tokenizer::EncodeRendered(std::string_view text) const {
  const bool has_bos = bos() >= 0 && text.starts_with(Piece(bos(), /*show_special=*/true));
  return Encode(text, {.add_special = !has_bos, .parse_special = true});
}

std::string Tokenizer::Decode(const std::vector<TokenId>& ids, bool show_special) const {
  std::string text;
  bool strip = strips_leading_space();
  for (const TokenId id : ids) {
    std::string_view piece = Piece(id, show_special);
    if (strip && !piece.empty()) {
      strip = false;
      if (piece.starts_with(' ')) piece.remove_prefix(1);
    }
    text += piece;
  }
  return text;
}

std::string Detokenizer::Add(TokenId id) {
  std::string_view piece = tokenizer_->Piece(id, show_special_);
  if (first_ && !piece.empty()) {
    first_ = false;
    if (tokenizer_->strips_leading_space() && piece.starts_with(' ')) piece.remove_prefix(1);
  }
  pending_ += piece;
  std::string text;
  std::string_view rest = pending_;
  while (!rest.empty()) {
    const Utf8Front front = ReadUtf8(rest);
    if (front.kind == Utf8Kind::kIncomplete) break;
    text += front.kind == Utf8Kind::kValid ? rest.substr(0, front.length) : kReplacement;
    rest.remove_prefix(front.length);
  }
  pending_.erase(0, pending_.size() - rest.size());
  return text;
}

std::string Detokenizer::Finish() {
  if (pending_.empty()) return "";
  pending_.clear();
  return std::string(kReplacement);
}

}  // namespace packtrain

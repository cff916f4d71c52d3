#pragma once

// The token table of a GGUF file: texts, kinds and special ids. Private to this folder.

#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "coordinator/tokenizer/tokenizer.h"

namespace packtrain {

// "[bad_tokenizer] path: field 'key': what"; INVALID_ARGUMENT.
absl::Status TokenizerError(const GgufFile& file, std::string_view key, std::string_view what);

// Bytes from a file as they may stand in a message.
std::string PrintableText(std::string_view text);

struct Vocabulary {
  std::vector<std::string> texts;  // as in the file
  std::vector<TokenKind> kinds;
  std::vector<bool> end_of_generation;
  TokenId bos = -1;
  TokenId eos = -1;
  TokenId unknown = -1;
  bool add_bos = false;
  bool add_eos = false;

  TokenId size() const { return static_cast<TokenId>(texts.size()); }
  // Whether plain text may become this token by merging. The other kinds are matched as a whole
  // (or, bytes, by their value), so that no text can assemble a control token.
  bool Mergeable(TokenId id) const {
    const TokenKind kind = kinds[static_cast<size_t>(id)];
    return kind == TokenKind::kNormal || kind == TokenKind::kUnused;
  }
};

// What holds where the file says nothing.
struct VocabularyDefaults {
  TokenId bos = -1;
  TokenId eos = -1;
  TokenId unknown = -1;
  bool add_bos = false;
};

// Errors: keys absent, of a wrong type or length, or ids outside the table.
absl::StatusOr<Vocabulary> ReadVocabulary(const GgufFile& file, VocabularyDefaults defaults);

// A bool key, or `fallback` if absent.
absl::StatusOr<bool> BoolKeyOr(const GgufFile& file, std::string_view key, bool fallback);

}  // namespace packtrain

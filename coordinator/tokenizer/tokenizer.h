#pragma once

// Text to token ids and back, from the metadata of a GGUF file. Immutable after Create; any thread
// may use it (a Detokenizer belongs to one stream).

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "common/model/token.h"
#include "common/weights/gguf.h"

namespace packtrain {

enum class TokenKind : uint8_t { kNormal = 1, kUnknown, kControl, kUserDefined, kUnused, kByte };

struct EncodeOptions {
  bool add_special = false;    // add BOS/EOS where the file says so
  bool parse_special = false;  // match control tokens in the text (user-defined ones always match)
};

class Tokenizer {
 public:
  virtual ~Tokenizer() = default;

  // Copies what it needs; `file` may be closed afterwards. An absent or unknown model or
  // pre-tokenizer is an error that names the key, the value and what is known.
  static absl::StatusOr<std::unique_ptr<Tokenizer>> Create(const GgufFile& file);

  // Any bytes are accepted. Cost: about linear in text.size().
  virtual std::vector<TokenId> Encode(std::string_view text, EncodeOptions options) const = 0;

  // A rendered chat template: special tokens are parsed, and BOS is added where the file says so,
  // unless the text begins with it, as most templates do themselves.
  std::vector<TokenId> EncodeRendered(std::string_view text) const;

  // The bytes of one token; empty for control and unknown tokens unless `show_special`.
  // REQUIRES: 0 <= id < vocab_size().
  // Unused tokens have none.
  virtual std::string_view Piece(TokenId id, bool show_special) const = 0;
  // The pieces in a row, as bytes.
  std::string Decode(const std::vector<TokenId>& ids, bool show_special) const;

  virtual int vocab_size() const = 0;
  virtual TokenKind kind(TokenId id) const = 0;
  virtual bool IsEndOfGeneration(TokenId id) const = 0;
  // -1 where the file has none.
  virtual TokenId bos() const = 0;
  virtual TokenId eos() const = 0;
  virtual bool add_bos() const = 0;
  // The first visible piece of a text begins with a space that Encode put there (SentencePiece).
  virtual bool strips_leading_space() const = 0;
};

// Bytes to text, one token at a time: holds back an incomplete UTF-8 character until the rest
// arrives; invalid bytes become U+FFFD.
class Detokenizer {
 public:
  explicit Detokenizer(const Tokenizer* tokenizer, bool show_special = false)
      : tokenizer_(tokenizer), show_special_(show_special) {}
  // The text that became complete with this token (may be empty).
  std::string Add(TokenId id);
  // What is still held back, as U+FFFD.
  std::string Finish();

 private:
  const Tokenizer* tokenizer_;
  bool show_special_;
  bool first_ = true;
  std::string pending_;
};

}  // namespace packtrain

#pragma once

// GGUF files that hold nothing but a small tokenizer.

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace packtrain {

// A token beside the ordinary ones. Types: 2 unknown, 3 control, 4 user-defined, 5 unused.
struct SpecialToken {
  std::string text;
  int32_t type = 3;
};

struct BpeFileOptions {
  std::string pre = "glm4";
  std::vector<std::pair<std::string, std::string>> merges = {};  // of ASCII texts without spaces
  std::vector<SpecialToken> specials = {};
};

// Byte-level BPE. Ids: 0..255 are the bytes by value, then the results of the merges in order
// (each once), then the specials.
std::string BpeFile(const BpeFileOptions& options);

struct SpmToken {
  std::string text;  // a space is written U+2581
  float score = 0;
};

// SentencePiece. Ids: 0 "<unk>", 1 "<s>", 2 "</s>", 3..258 the bytes by value, then `tokens`.
std::string SpmFile(const std::vector<SpmToken>& tokens);

}  // namespace packtrain

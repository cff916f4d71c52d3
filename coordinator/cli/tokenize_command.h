#pragma once

// `packtrain tokenize`: text to token ids with the tokenizer of a GGUF file.

#include <string>

#include "absl/status/status.h"

namespace packtrain {

struct TokenizeOptions {
  std::string model_path;
  std::string text;  // used if `has_text`, else standard input is read
  bool has_text = false;
  bool add_special = false;
  bool parse_special = false;
  bool ids_only = false;  // one line of ids instead of one line per token
};

// Writes to standard output.
absl::Status RunTokenize(const TokenizeOptions& options);

}  // namespace packtrain

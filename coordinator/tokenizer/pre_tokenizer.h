#pragma once

// Cuts text into the pieces within which byte-level BPE merges.

#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace packtrain {

class PreTokenizer {
 public:
  // nullptr if no pre-tokenizer has this name (the value of tokenizer.ggml.pre).
  static std::unique_ptr<PreTokenizer> Create(std::string_view name);
  // All names, for messages.
  static std::string KnownNames();

  ~PreTokenizer();

  // The pieces of `text` in order; together they are `text`. Bytes that are no UTF-8 are pieces of
  // their own. Cost: linear in text.size().
  std::vector<std::string_view> Split(std::string_view text) const;

  // The family of the name wants pieces that are tokens to be taken whole.
  bool ignore_merges() const { return ignore_merges_; }
  // What the family does where the file has no tokenizer.ggml.add_bos_token.
  bool add_bos() const { return add_bos_; }

 private:
  class Regex;

  PreTokenizer();

  std::vector<std::unique_ptr<Regex>> regexes_;
  bool ignore_merges_ = false;
  bool add_bos_ = false;
};

}  // namespace packtrain

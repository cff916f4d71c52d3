#pragma once

// Finds the tokens that are matched as whole strings before anything else.

#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "coordinator/tokenizer/vocabulary.h"

namespace packtrain {

class SpecialSplitter {
 public:
  struct Fragment {
    std::string_view text;
    TokenId special = -1;  // the token that `text` is, or -1: ordinary text, not empty
  };

  explicit SpecialSplitter(const Vocabulary& vocabulary);

  // User-defined tokens always match, control and unknown tokens only if `parse_special`. Longer
  // tokens win over shorter ones wherever they stand, among equals the lower id, then the leftmost.
  // Cost: text.size() times the length to which texts and tokens agree.
  std::vector<Fragment> Split(std::string_view text, bool parse_special) const;

 private:
  struct Node {
    TokenId user_defined = -1;
    TokenId control = -1;
  };
  struct Match {
    size_t begin;
    size_t size;
    TokenId id;
  };

  std::vector<Match> FindAll(std::string_view text, bool parse_special) const;

  // A trie: the child of node n by byte b is children_[n << 8 | b]; node 0 is the root.
  absl::flat_hash_map<uint64_t, uint32_t> children_;
  std::vector<Node> nodes_;
};

}  // namespace packtrain

#include "coordinator/tokenizer/special_splitter.h"

#include <algorithm>
#include <tuple>

namespace packtrain {
namespace {

uint64_t Edge(uint32_t node, char byte) { return uint64_t{node} << 8 | static_cast<uint8_t>(byte); }

}  // namespace

SpecialSplitter::SpecialSplitter(const Vocabulary& vocabulary) : nodes_(1) {
  for (TokenId id = 0; id < vocabulary.size(); ++id) {
    const TokenKind kind = vocabulary.kinds[static_cast<size_t>(id)];
    const std::string& text = vocabulary.texts[static_cast<size_t>(id)];
    const bool control = kind == TokenKind::kControl || kind == TokenKind::kUnknown;
    if (text.empty() || !(control || kind == TokenKind::kUserDefined)) continue;
    uint32_t node = 0;
    for (const char byte : text) {
      const auto next = static_cast<uint32_t>(nodes_.size());
      const auto [edge, is_new] = children_.emplace(Edge(node, byte), next);
      if (is_new) nodes_.emplace_back();
      node = edge->second;
    }
    TokenId& slot = control ? nodes_[node].control : nodes_[node].user_defined;
    if (slot < 0) slot = id;
  }
}

std::vector<SpecialSplitter::Match> SpecialSplitter::FindAll(std::string_view text,
                                                             bool parse_special) const {
  std::vector<Match> matches;
  for (size_t begin = 0; begin < text.size(); ++begin) {
    uint32_t node = 0;
    for (size_t end = begin; end < text.size(); ++end) {
      const auto edge = children_.find(Edge(node, text[end]));
      if (edge == children_.end()) break;
      node = edge->second;
      TokenId id = nodes_[node].user_defined;
      if (parse_special && nodes_[node].control >= 0) id = nodes_[node].control;
      if (id >= 0) matches.push_back({begin, end + 1 - begin, id});
    }
  }
  return matches;
}

std::vector<SpecialSplitter::Fragment> SpecialSplitter::Split(std::string_view text,
                                                              bool parse_special) const {
  std::vector<Match> matches = FindAll(text, parse_special);
  std::sort(matches.begin(), matches.end(), [](const Match& a, const Match& b) {
    return std::tuple(b.size, a.id, a.begin) < std::tuple(a.size, b.id, b.begin);
  });
  // What is taken already is at least as long as what comes, so an overlap covers an end of it.
  std::vector<bool> taken(matches.empty() ? 0 : text.size());
  std::erase_if(matches, [&](const Match& match) {
    if (taken[match.begin] || taken[match.begin + match.size - 1]) return true;
    std::fill_n(taken.begin() + static_cast<ptrdiff_t>(match.begin), match.size, true);
    return false;
  });
  std::sort(matches.begin(), matches.end(),
            [](const Match& a, const Match& b) { return a.begin < b.begin; });

  std::vector<Fragment> fragments;
  size_t position = 0;
  for (const Match& match : matches) {
    if (match.begin > position) {
      fragments.push_back({text.substr(position, match.begin - position)});
    }
    fragments.push_back({text.substr(match.begin, match.size), match.id});
    position = match.begin + match.size;
  }
  if (position < text.size()) fragments.push_back({text.substr(position)});
  return fragments;
}

}  // namespace packtrain

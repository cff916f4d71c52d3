#include "coordinator/tokenizer/spm_tokenizer.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <queue>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_replace.h"
#include "common/base/status_macros.h"
#include "coordinator/tokenizer/utf8.h"

namespace packtrain {
namespace {

constexpr char kSpace[] = "\xE2\x96\x81";  // U+2581 stands for a space

// 0xNN of "<0xNN>", or -1.
int ByteValue(const std::string& text) {
  uint32_t value = 0;
  if (text.size() != 6 || !text.starts_with("<0x") || text[5] != '>') return -1;
  if (!absl::SimpleHexAtoi(text.substr(3, 2), &value)) return -1;
  return static_cast<int>(value);
}

}  // namespace

absl::StatusOr<std::unique_ptr<Tokenizer>> SpmTokenizer::Create(const GgufFile& file) {
  ASSIGN_OR_RETURN(Vocabulary vocabulary,
                   ReadVocabulary(file, {.bos = 1, .eos = 2, .unknown = 0, .add_bos = true}));
  Tables tables;
  constexpr char kScoresKey[] = "tokenizer.ggml.scores";
  ASSIGN_OR_RETURN(tables.scores, file.GetFloatArray(kScoresKey));
  if (tables.scores.size() != vocabulary.texts.size()) {
    return TokenizerError(
        file, kScoresKey,
        absl::StrFormat("%d entries for %d tokens", tables.scores.size(), vocabulary.texts.size()));
  }
  for (size_t i = 0; i < tables.scores.size(); ++i) {
    if (std::isnan(tables.scores[i])) {
      return TokenizerError(file, kScoresKey, absl::StrFormat("entry %d is no number", i));
    }
  }
  ASSIGN_OR_RETURN(tables.add_space_prefix,
                   BoolKeyOr(file, "tokenizer.ggml.add_space_prefix", true));
  tables.byte_tokens.fill(-1);
  std::vector<std::string> pieces = vocabulary.texts;
  for (TokenId id = 0; id < vocabulary.size(); ++id) {
    const auto i = static_cast<size_t>(id);
    const std::string& text = vocabulary.texts[i];
    if (vocabulary.Mergeable(id)) {
      pieces[i] = absl::StrReplaceAll(text, {{kSpace, " "}});
    } else if (vocabulary.kinds[i] == TokenKind::kByte) {
      const int byte = ByteValue(text);
      if (byte < 0) {
        return TokenizerError(
            file, "tokenizer.ggml.tokens",
            absl::StrFormat("byte token %d is \"%s\", must be <0xNN>", id, PrintableText(text)));
      }
      pieces[i] = std::string(1, static_cast<char>(byte));
      tables.byte_tokens[static_cast<size_t>(byte)] = id;
    }
  }
  return std::unique_ptr<Tokenizer>(
      new SpmTokenizer(std::move(vocabulary), std::move(pieces), std::move(tables)));
}

SpmTokenizer::SpmTokenizer(Vocabulary vocabulary, std::vector<std::string> pieces, Tables tables)
    : VocabTokenizer(std::move(vocabulary), std::move(pieces)), tables_(std::move(tables)) {
  for (TokenId id = 0; id < vocab_size(); ++id) {
    if (!this->vocabulary().Mergeable(id)) continue;
    const std::string& text = this->vocabulary().texts[static_cast<size_t>(id)];
    ids_.insert_or_assign(text, id);
    text_size_max_ = std::max(text_size_max_, text.size());
  }
}

TokenId SpmTokenizer::Find(std::string_view text) const {
  if (text.size() > text_size_max_) return -1;  // do not hash what cannot be there
  const auto found = ids_.find(text);
  return found == ids_.end() ? -1 : found->second;
}

// Starts from characters and merges the adjacent pair whose text is the token of highest score,
// leftmost first, until no pair is a token. A linked list and a heap: n log n.
void SpmTokenizer::EncodeText(std::string_view raw, bool fresh, std::vector<TokenId>* ids) const {
  std::string text = fresh && tables_.add_space_prefix ? " " : "";
  text += raw;
  text = absl::StrReplaceAll(text, {{" ", kSpace}});

  constexpr size_t kNone = std::string_view::npos;
  struct Part {
    std::string_view text;  // empty once merged into the part before it
    size_t previous;
    size_t next;
  };
  struct Candidate {
    float score;
    size_t left;
    size_t size;  // of both texts, to recognise what has changed since
    bool operator<(const Candidate& other) const {
      return score != other.score ? score < other.score : left > other.left;
    }
  };
  std::vector<Part> parts;
  for (std::string_view rest = text; !rest.empty();) {
    const size_t size = ReadUtf8(rest).length;
    parts.push_back({rest.substr(0, size), parts.size() - 1, parts.size() + 1});
    rest.remove_prefix(size);
  }
  parts.back().next = kNone;

  std::priority_queue<Candidate> heap;
  const auto consider = [&](size_t left) {
    const size_t right = left == kNone ? kNone : parts[left].next;
    if (right == kNone) return;
    // Neighbours lie side by side in `text`.
    const size_t size = parts[left].text.size() + parts[right].text.size();
    const TokenId id = Find(std::string_view(parts[left].text.data(), size));
    if (id >= 0) heap.push({tables_.scores[static_cast<size_t>(id)], left, size});
  };
  for (size_t i = 0; i < parts.size(); ++i) consider(i);
  while (!heap.empty()) {
    const Candidate best = heap.top();
    heap.pop();
    Part& left = parts[best.left];
    if (left.text.empty() || left.next == kNone) continue;
    Part& right = parts[left.next];
    if (left.text.size() + right.text.size() != best.size) continue;
    left.text = std::string_view(left.text.data(), best.size);
    right.text = {};
    left.next = right.next;
    if (left.next != kNone) parts[left.next].previous = best.left;
    consider(left.previous);
    consider(best.left);
  }
  for (size_t i = 0; i != kNone; i = parts[i].next) AppendTokens(parts[i].text, ids);
}

void SpmTokenizer::AppendTokens(std::string_view symbol, std::vector<TokenId>* ids) const {
  if (const TokenId id = Find(symbol); id >= 0) {
    ids->push_back(id);
    return;
  }
  for (const char byte : symbol) {
    const TokenId id = tables_.byte_tokens[static_cast<uint8_t>(byte)];
    if (id >= 0) {
      ids->push_back(id);
    } else if (vocabulary().unknown >= 0) {
      ids->push_back(vocabulary().unknown);
    }
  }
}

}  // namespace packtrain

#include "coordinator/tokenizer/bpe_tokenizer.h"

#include <optional>
#include <queue>

#include "absl/strings/str_format.h"
#include "common/base/status_macros.h"

namespace packtrain {
namespace {

// Byte-level BPE writes each byte as a character: printable bytes as themselves, the others from
// U+0100 on.
class ByteAlphabet {
 public:
  ByteAlphabet() {
    bytes_.fill(-1);
    uint32_t next = 0x100;
    for (uint32_t byte = 0; byte < 256; ++byte) {
      const bool printable = (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) ||
                             (byte >= 174 && byte <= 255);
      const uint32_t character = printable ? byte : next++;
      bytes_[character] = static_cast<int16_t>(byte);
      if (character < 0x80) {
        texts_[byte] = {static_cast<char>(character)};
      } else {
        texts_[byte] = {static_cast<char>(0xC0 | character >> 6),
                        static_cast<char>(0x80 | (character & 0x3F))};
      }
    }
  }

  const std::string& Text(uint8_t byte) const { return texts_[byte]; }

  // The bytes that `text` stands for; nullopt if it has characters outside the alphabet.
  std::optional<std::string> Bytes(std::string_view text) const {
    std::string bytes;
    for (size_t i = 0; i < text.size(); ++i) {
      uint32_t character = static_cast<uint8_t>(text[i]);
      if (character >= 0x80) {
        if ((character & 0xE0) != 0xC0 || ++i == text.size()) return std::nullopt;
        character = (character & 0x1F) << 6 | (static_cast<uint8_t>(text[i]) & 0x3Fu);
      }
      if (character >= bytes_.size() || bytes_[character] < 0) return std::nullopt;
      bytes.push_back(static_cast<char>(bytes_[character]));
    }
    return bytes;
  }

 private:
  std::array<int16_t, 0x144> bytes_;  // by character
  std::array<std::string, 256> texts_;
};

const ByteAlphabet& Alphabet() {
  static const auto& alphabet = *new ByteAlphabet();
  return alphabet;
}

}  // namespace

// Turns token and merge texts into symbols.
class BpeTokenizer::Builder {
 public:
  Builder(const GgufFile& file, const Vocabulary& vocabulary)
      : file_(file), vocabulary_(vocabulary) {}

  absl::StatusOr<Tables> Build(std::unique_ptr<PreTokenizer> pre_tokenizer) {
    for (TokenId id = 0; id < vocabulary_.size(); ++id) {
      if (!vocabulary_.Mergeable(id)) continue;
      symbols_.insert_or_assign(vocabulary_.texts[static_cast<size_t>(id)], id);
    }
    for (size_t byte = 0; byte < 256; ++byte) {
      const std::string& text = Alphabet().Text(static_cast<uint8_t>(byte));
      tables_.byte_symbols[byte] = Intern(text);
    }
    RETURN_IF_ERROR(ReadMerges());
    tables_.pre_tokenizer = std::move(pre_tokenizer);
    return std::move(tables_);
  }

 private:
  Symbol Intern(const std::string& text) {
    const auto next = vocabulary_.size() + static_cast<Symbol>(tables_.other_symbols.size());
    const auto [symbol, is_new] = symbols_.emplace(text, next);
    if (is_new) tables_.other_symbols.push_back(Alphabet().Bytes(text).value_or(""));
    return symbol->second;
  }

  absl::Status ReadMerges() {
    constexpr char kKey[] = "tokenizer.ggml.merges";
    ASSIGN_OR_RETURN(const auto merges, file_.GetStringArray(kKey));
    constexpr size_t kMergesMax = size_t{1} << 24;
    if (merges.size() > kMergesMax) {
      return TokenizerError(file_, kKey,
                            absl::StrFormat("%d entries, allowed %d", merges.size(), kMergesMax));
    }
    tables_.merges.reserve(merges.size());
    for (size_t rank = 0; rank < merges.size(); ++rank) {
      // A merge is "left right"; the left side may itself begin with a space.
      const std::string_view text = merges[rank];
      const size_t space = text.find(' ', 1);
      if (space == text.npos) {
        return TokenizerError(
            file_, kKey,
            absl::StrFormat("entry %d is \"%s\", must be two texts with a space between", rank,
                            PrintableText(text)));
      }
      const std::string left(text.substr(0, space));
      const std::string right(text.substr(space + 1));
      const uint64_t key = PairKey(Intern(left), Intern(right));
      tables_.merges.emplace(key, Merge{static_cast<int32_t>(rank), Intern(left + right)});
    }
    return absl::OkStatus();
  }

  const GgufFile& file_;
  const Vocabulary& vocabulary_;
  absl::flat_hash_map<std::string, Symbol> symbols_;  // by text as in the file
  Tables tables_;
};

absl::StatusOr<std::unique_ptr<Tokenizer>> BpeTokenizer::Create(const GgufFile& file) {
  constexpr char kPreKey[] = "tokenizer.ggml.pre";
  ASSIGN_OR_RETURN(const std::string_view name, file.GetString(kPreKey));
  std::unique_ptr<PreTokenizer> pre_tokenizer = PreTokenizer::Create(name);
  if (pre_tokenizer == nullptr) {
    return TokenizerError(
        file, kPreKey,
        absl::StrFormat("\"%s\", known are %s", PrintableText(name), PreTokenizer::KnownNames()));
  }
  ASSIGN_OR_RETURN(Vocabulary vocabulary,
                   ReadVocabulary(file, {.add_bos = pre_tokenizer->add_bos()}));
  ASSIGN_OR_RETURN(Tables tables, Builder(file, vocabulary).Build(std::move(pre_tokenizer)));

  std::vector<std::string> pieces;
  pieces.reserve(vocabulary.texts.size());
  for (TokenId id = 0; id < vocabulary.size(); ++id) {
    const std::string& text = vocabulary.texts[static_cast<size_t>(id)];
    pieces.push_back(vocabulary.Mergeable(id) ? Alphabet().Bytes(text).value_or(text) : text);
  }
  return std::unique_ptr<Tokenizer>(
      new BpeTokenizer(std::move(vocabulary), std::move(pieces), std::move(tables)));
}

BpeTokenizer::BpeTokenizer(Vocabulary vocabulary, std::vector<std::string> pieces, Tables tables)
    : VocabTokenizer(std::move(vocabulary), std::move(pieces)), tables_(std::move(tables)) {
  if (!tables_.pre_tokenizer->ignore_merges()) return;
  for (TokenId id = 0; id < vocab_size(); ++id) {
    if (this->vocabulary().Mergeable(id)) whole_.emplace(Piece(id, /*show_special=*/true), id);
  }
}

void BpeTokenizer::EncodeText(std::string_view text, bool, std::vector<TokenId>* ids) const {
  for (const std::string_view piece : tables_.pre_tokenizer->Split(text)) EncodePiece(piece, ids);
}

// Merges the adjacent pair of lowest rank, leftmost first, until none is left. The parts are a
// linked list in an array, and the candidates a heap, so a long piece costs n log n.
void BpeTokenizer::EncodePiece(std::string_view piece, std::vector<TokenId>* ids) const {
  if (const auto found = whole_.find(piece); found != whole_.end()) {
    ids->push_back(found->second);
    return;
  }
  constexpr size_t kNone = std::string_view::npos;
  constexpr Symbol kGone = -1;
  struct Part {
    Symbol symbol;
    size_t previous;
    size_t next;
  };
  struct Candidate {
    int32_t rank;
    Symbol left_symbol;
    Symbol right_symbol;
    size_t left;
    bool operator>(const Candidate& other) const {
      return rank != other.rank ? rank > other.rank : left > other.left;
    }
  };
  std::vector<Part> parts(piece.size());
  std::vector<Candidate> heap_storage;
  heap_storage.reserve(piece.size());
  std::priority_queue heap(std::greater<Candidate>(), std::move(heap_storage));
  const auto consider = [&](size_t left) {
    const size_t right = left == kNone ? kNone : parts[left].next;
    if (right == kNone) return;
    const Symbol a = parts[left].symbol;
    const Symbol b = parts[right].symbol;
    const auto merge = tables_.merges.find(PairKey(a, b));
    if (merge != tables_.merges.end()) heap.push({merge->second.rank, a, b, left});
  };

  for (size_t i = 0; i < piece.size(); ++i) {
    parts[i] = {tables_.byte_symbols[static_cast<uint8_t>(piece[i])], i == 0 ? kNone : i - 1,
                i + 1 == piece.size() ? kNone : i + 1};
  }
  for (size_t i = 0; i < piece.size(); ++i) consider(i);
  while (!heap.empty()) {
    const Candidate best = heap.top();
    heap.pop();
    Part& left = parts[best.left];
    // Either side may have been merged since.
    if (left.symbol != best.left_symbol || left.next == kNone) continue;
    Part& right = parts[left.next];
    if (right.symbol != best.right_symbol) continue;
    left.symbol = tables_.merges.find(PairKey(best.left_symbol, best.right_symbol))->second.result;
    right.symbol = kGone;
    left.next = right.next;
    if (left.next != kNone) parts[left.next].previous = best.left;
    consider(left.previous);
    consider(best.left);
  }
  for (size_t i = 0; i != kNone; i = parts[i].next) AppendTokens(parts[i].symbol, ids);
}

void BpeTokenizer::AppendTokens(Symbol symbol, std::vector<TokenId>* ids) const {
  const TokenId size = vocabulary().size();
  if (symbol < size) {
    ids->push_back(symbol);
    return;
  }
  // No token: byte by byte, without the bytes that have no token either.
  for (const char byte : tables_.other_symbols[static_cast<size_t>(symbol - size)]) {
    const Symbol single = tables_.byte_symbols[static_cast<uint8_t>(byte)];
    if (single < size) ids->push_back(single);
  }
}

}  // namespace packtrain

#include "coordinator/tokenizer/tokenizer.h"
#include "coordinator/tokenizer/utf8.h"
#include "tests/fuzz/fuzz_targets.h"
#include "tests/support/test_files.h"
#include "tests/support/tokenizer_files.h"

namespace packtrain {
namespace {

std::unique_ptr<Tokenizer> Make(const std::string& bytes) {
  return Tokenizer::Create(*GgufFile::Parse(AsBytes(bytes), "fuzz.gguf").value()).value();
}

// What a stream of these tokens shows must be UTF-8 whatever they are.
std::string CheckStream(const Tokenizer& tokenizer, const std::vector<TokenId>& ids) {
  Detokenizer detokenizer(&tokenizer, /*show_special=*/true);
  for (const TokenId id : ids) {
    const std::string chunk = detokenizer.Add(id);
    if (ValidUtf8Prefix(chunk) != chunk.size()) return "a chunk that is no UTF-8";
  }
  return detokenizer.Finish().size() <= 3 ? "" : "too much was held back";
}

std::string CheckText(const Tokenizer& tokenizer, std::string_view text) {
  for (const bool parse_special : {false, true}) {
    const std::vector<TokenId> ids = tokenizer.Encode(text, {.parse_special = parse_special});
    for (const TokenId id : ids) {
      if (id < 0 || id >= tokenizer.vocab_size()) return "an id outside the vocabulary";
      if (!parse_special && tokenizer.kind(id) == TokenKind::kControl) return "a control token";
    }
    if (tokenizer.Decode(ids, /*show_special=*/true) != text) return "another text came back";
    if (std::string broken = CheckStream(tokenizer, ids); !broken.empty()) return broken;
  }
  return "";
}

}  // namespace

std::string FuzzTokenizerText(std::span<const std::byte> bytes) {
  static const auto& tokenizers = *new std::vector<std::unique_ptr<Tokenizer>>([] {
    const BpeFileOptions options = {.merges = {{"a", "b"}, {"b", "c"}, {"ab", "c"}, {"a", "a"}},
                                    .specials = {{"<u>", 4}, {"<u><v>", 3}, {"<|", 3}}};
    std::vector<std::unique_ptr<Tokenizer>> all;
    for (const char* pre : {"glm4", "llama-bpe", "qwen2", "qwen35", "deepseek-v3", "gpt-2"}) {
      BpeFileOptions with_pre = options;
      with_pre.pre = pre;
      all.push_back(Make(BpeFile(with_pre)));
    }
    return all;
  }());
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  for (const auto& tokenizer : tokenizers) {
    if (std::string broken = CheckText(*tokenizer, text); !broken.empty()) return broken;
  }
  return "";
}

std::string FuzzTokenizerFile(std::span<const std::byte> bytes) {
  const auto file = GgufFile::Parse(bytes, "fuzz.gguf");
  if (!file.ok()) return "";
  const auto tokenizer = Tokenizer::Create(**file);
  if (!tokenizer.ok()) {
    return tokenizer.status().message().empty() ? "an error without a message" : "";
  }
  std::vector<TokenId> all;
  for (TokenId id = 0; id < (*tokenizer)->vocab_size(); ++id) all.push_back(id);
  if (std::string broken = CheckStream(**tokenizer, all); !broken.empty()) return broken;
  const std::string sample = "<|user|>\nGr\xC3\xBC\xC3\x9F dich, 12345 \xFF\xF0\x9F\x98\x80!  </s>";
  for (const TokenId id : (*tokenizer)->EncodeRendered(sample)) {
    if (id < 0 || id >= (*tokenizer)->vocab_size()) return "an id outside the vocabulary";
  }
  return "";
}

}  // namespace packtrain

#include "coordinator/tokenizer/vocabulary.h"

#include <limits>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_format.h"
#include "common/base/status_macros.h"

namespace packtrain {
namespace {

// Files seldom list all tokens that end a turn, and some give them the type of ordinary text; then
// only the text tells.
const absl::flat_hash_set<std::string_view>& EndOfGenerationTexts() {
  static const auto& texts = *new absl::flat_hash_set<std::string_view>{
      "<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<|end_of_text|>",
      "<|return|>", "<|call|>", "<end_of_turn>", "<end_of_utterance>", "<EOT>", "</s>",
      "<｜end▁of▁sentence｜>",
      // Padding and the borders between files of fill-in-the-middle training.
      "<|fim_pad|>", "<fim_pad>", "<fim-pad>", "<|fim_repo|>", "<|repo_name|>", "<fim-repo>",
      "<reponame>", "<|file_sep|>"};
  return texts;
}

// Fill-in-the-middle markers. Like the ones above they are control tokens whatever type they have.
const absl::flat_hash_set<std::string_view>& FillInTexts() {
  static const auto& texts = *new absl::flat_hash_set<std::string_view>{
      "<|fim_prefix|>", "<fim_prefix>", "<fim-prefix>", "<｜fim▁begin｜>",
      "<|fim_suffix|>", "<fim_suffix>", "<fim-suffix>", "<｜fim▁hole｜>",
      "<|fim_middle|>", "<fim_middle>", "<fim-middle>", "<｜fim▁end｜>"};
  return texts;
}

// A token id key, or `fallback` if absent. A fallback outside the table counts as absent.
absl::StatusOr<TokenId> IdKeyOr(const GgufFile& file, const std::string& key, TokenId fallback,
                                TokenId size) {
  if (file.Find(key) == nullptr) return fallback < size ? fallback : -1;
  ASSIGN_OR_RETURN(const uint64_t id, file.GetU64(key));
  if (id >= static_cast<uint64_t>(size)) {
    return TokenizerError(file, key, absl::StrFormat("%d, allowed 0..%d", id, size - 1));
  }
  return static_cast<TokenId>(id);
}

absl::Status ReadKinds(const GgufFile& file, Vocabulary* vocabulary) {
  const std::string key = "tokenizer.ggml.token_type";
  const size_t size = vocabulary->texts.size();
  vocabulary->kinds.assign(size, TokenKind::kNormal);
  if (file.Find(key) == nullptr) return absl::OkStatus();
  ASSIGN_OR_RETURN(const std::vector<int64_t> types, file.GetIntArray(key));
  if (types.size() != size) {
    return TokenizerError(file, key,
                          absl::StrFormat("%d entries for %d tokens", types.size(), size));
  }
  for (size_t i = 0; i < size; ++i) {
    if (types[i] < 1 || types[i] > 6) {
      return TokenizerError(file, key,
                            absl::StrFormat("entry %d is %d, allowed 1..6", i, types[i]));
    }
    vocabulary->kinds[i] = static_cast<TokenKind>(types[i]);
  }
  return absl::OkStatus();
}

absl::Status ReadSpecials(const GgufFile& file, VocabularyDefaults defaults,
                          Vocabulary* vocabulary) {
  const TokenId size = vocabulary->size();
  const auto read = [&](const char* name, TokenId fallback) {
    return IdKeyOr(file, absl::StrFormat("tokenizer.ggml.%s_token_id", name), fallback, size);
  };
  ASSIGN_OR_RETURN(vocabulary->bos, read("bos", defaults.bos));
  ASSIGN_OR_RETURN(vocabulary->eos, read("eos", defaults.eos));
  ASSIGN_OR_RETURN(vocabulary->unknown, read("unknown", defaults.unknown));
  vocabulary->end_of_generation.assign(static_cast<size_t>(size), false);
  for (const char* name : {"eos", "eot", "eom", "fim_pad", "fim_rep", "fim_sep"}) {
    ASSIGN_OR_RETURN(const TokenId id, read(name, -1));
    if (id >= 0) vocabulary->end_of_generation[static_cast<size_t>(id)] = true;
  }
  if (vocabulary->eos >= 0) {
    vocabulary->end_of_generation[static_cast<size_t>(vocabulary->eos)] = true;
  }
  for (size_t i = 0; i < vocabulary->texts.size(); ++i) {
    const bool ends = EndOfGenerationTexts().contains(vocabulary->texts[i]);
    if (ends) vocabulary->end_of_generation[i] = true;
    if (ends || FillInTexts().contains(vocabulary->texts[i])) {
      vocabulary->kinds[i] = TokenKind::kControl;
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status TokenizerError(const GgufFile& file, std::string_view key, std::string_view what) {
  return absl::InvalidArgumentError(
      absl::StrFormat("[bad_tokenizer] %s: field '%s': %s", file.path(), key, what));
}

std::string PrintableText(std::string_view text) {
  constexpr size_t kShown = 80;
  return absl::CHexEscape(std::string(text.substr(0, kShown)));
}

absl::StatusOr<bool> BoolKeyOr(const GgufFile& file, std::string_view key, bool fallback) {
  if (file.Find(key) == nullptr) return fallback;
  return file.GetBool(key);
}

absl::StatusOr<Vocabulary> ReadVocabulary(const GgufFile& file, VocabularyDefaults defaults) {
  constexpr size_t kTokensMax = size_t{1} << 24;
  Vocabulary vocabulary;
  ASSIGN_OR_RETURN(const auto tokens, file.GetStringArray("tokenizer.ggml.tokens"));
  if (tokens.empty() || tokens.size() > kTokensMax) {
    return TokenizerError(file, "tokenizer.ggml.tokens",
                          absl::StrFormat("%d tokens, allowed 1..%d", tokens.size(), kTokensMax));
  }
  vocabulary.texts.assign(tokens.begin(), tokens.end());
  RETURN_IF_ERROR(ReadKinds(file, &vocabulary));
  RETURN_IF_ERROR(ReadSpecials(file, defaults, &vocabulary));
  ASSIGN_OR_RETURN(vocabulary.add_bos,
                   BoolKeyOr(file, "tokenizer.ggml.add_bos_token", defaults.add_bos));
  ASSIGN_OR_RETURN(vocabulary.add_eos, BoolKeyOr(file, "tokenizer.ggml.add_eos_token", false));
  return vocabulary;
}

}  // namespace packtrain

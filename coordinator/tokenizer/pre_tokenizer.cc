#include "coordinator/tokenizer/pre_tokenizer.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <limits>
#include <span>

#include "absl/strings/str_replace.h"
#include "common/base/check.h"
#include "coordinator/tokenizer/utf8.h"

namespace packtrain {
namespace {

// White_Space of Unicode, as the inside of a character class. Spelled out because PCRE2's \s also
// takes U+180E.
constexpr char kSpace[] =
    R"(\t-\r \x{85}\x{A0}\x{1680}\x{2000}-\x{200A}\x{2028}\x{2029}\x{202F}\x{205F}\x{3000})";

constexpr const char* kLlama3[] = {
    R"((?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)"};
constexpr const char* kQwen2[] = {
    R"((?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)"};
constexpr const char* kQwen35[] = {
    R"((?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)"};
constexpr const char* kDeepSeekV3[] = {
    R"(\p{N}{1,3})", R"([\x{4E00}-\x{9FA5}\x{3040}-\x{309F}\x{30A0}-\x{30FF}]+)",
    R"([!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)"};
constexpr const char* kGpt2[] = {
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S))"};

struct Family {
  std::string_view name;
  std::span<const char* const> patterns;
  bool ignore_merges = false;
  bool add_bos = false;
};

constexpr Family kFamilies[] = {
    {"glm4", kLlama3},
    {"chatglm-bpe", kLlama3},
    {"llama-bpe", kLlama3, true, true},
    {"llama3", kLlama3, true, true},
    {"llama-v3", kLlama3, true, true},
    {"qwen2", kQwen2},
    {"qwen35", kQwen35},
    {"deepseek-v3", kDeepSeekV3},
    {"gpt-2", kGpt2},
};

}  // namespace

class PreTokenizer::Regex {
 public:
  explicit Regex(const char* pattern) {
    const std::string space(kSpace);
    const std::string text = absl::StrReplaceAll(
        pattern,
        {{R"([^\s)", "[^" + space}, {R"(\s)", "[" + space + "]"}, {R"(\S)", "[^" + space + "]"}});
    int error = 0;
    PCRE2_SIZE offset = 0;
    code_ = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), PCRE2_UTF, &error,
                          &offset, nullptr);
    CHECK_MSG(code_ != nullptr, pattern);
    // Without executable memory the interpreter does the same, slower.
    (void)pcre2_jit_compile(code_, PCRE2_JIT_COMPLETE);
    context_ = pcre2_match_context_create(nullptr);
    CHECK(context_ != nullptr);
    // The patterns give back at most what one repetition took, so matching ends; the limit would
    // only cut long runs of one character.
    pcre2_set_match_limit(context_, std::numeric_limits<uint32_t>::max());
  }
  Regex(const Regex&) = delete;
  Regex& operator=(const Regex&) = delete;
  ~Regex() {
    pcre2_match_context_free(context_);
    pcre2_code_free(code_);
  }

  // Appends the matches in `text` and what lies between them. REQUIRES: valid UTF-8.
  void Split(std::string_view text, std::vector<std::string_view>* pieces) const {
    pcre2_match_data* match = pcre2_match_data_create(1, nullptr);
    CHECK(match != nullptr);
    const PCRE2_SIZE* bounds = pcre2_get_ovector_pointer(match);
    size_t position = 0;
    while (position < text.size()) {
      const int result = pcre2_match(code_, reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(),
                                     position, PCRE2_NO_UTF_CHECK, match, context_);
      // No match in the rest, or no memory for one: the rest is one piece.
      if (result < 0 || bounds[1] <= position) break;
      if (bounds[0] > position) pieces->push_back(text.substr(position, bounds[0] - position));
      pieces->push_back(text.substr(bounds[0], bounds[1] - bounds[0]));
      position = bounds[1];
    }
    if (position < text.size()) pieces->push_back(text.substr(position));
    pcre2_match_data_free(match);
  }

 private:
  pcre2_code* code_ = nullptr;
  pcre2_match_context* context_ = nullptr;
};

PreTokenizer::PreTokenizer() = default;
PreTokenizer::~PreTokenizer() = default;

std::unique_ptr<PreTokenizer> PreTokenizer::Create(std::string_view name) {
  for (const Family& family : kFamilies) {
    if (family.name != name) continue;
    std::unique_ptr<PreTokenizer> made(new PreTokenizer());
    for (const char* pattern : family.patterns) {
      made->regexes_.push_back(std::make_unique<Regex>(pattern));
    }
    made->ignore_merges_ = family.ignore_merges;
    made->add_bos_ = family.add_bos;
    return made;
  }
  return nullptr;
}

std::string PreTokenizer::KnownNames() {
  std::string names;
  for (const Family& family : kFamilies) {
    if (!names.empty()) names += ", ";
    names += family.name;
  }
  return names;
}

std::vector<std::string_view> PreTokenizer::Split(std::string_view text) const {
  std::vector<std::string_view> all;
  while (!text.empty()) {
    std::vector<std::string_view> pieces;
    const size_t valid = ValidUtf8Prefix(text);
    if (valid > 0) pieces.push_back(text.substr(0, valid));
    text.remove_prefix(valid);
    for (const std::unique_ptr<Regex>& regex : regexes_) {
      std::vector<std::string_view> finer;
      for (const std::string_view piece : pieces) regex->Split(piece, &finer);
      pieces = std::move(finer);
    }
    all.insert(all.end(), pieces.begin(), pieces.end());
    if (text.empty()) break;
    const size_t invalid = ReadUtf8(text).length;
    all.push_back(text.substr(0, invalid));
    text.remove_prefix(invalid);
  }
  return all;
}

}  // namespace packtrain

#include "tests/support/tokenizer_files.h"

#include <algorithm>

#include "absl/strings/str_format.h"
#include "tests/support/gguf_writer.h"

namespace packtrain {
namespace {

// The characters by which byte-level BPE writes bytes, by byte.
std::vector<std::string> ByteTexts() {
  std::vector<std::string> texts;
  int moved = 0;
  for (int byte = 0; byte < 256; ++byte) {
    const bool stays = (byte > 32 && byte < 127) || (byte > 160 && byte != 173);
    const int character = stays ? byte : 256 + moved++;
    if (character < 128) {
      texts.push_back(std::string(1, static_cast<char>(character)));
    } else {
      texts.push_back(
          {static_cast<char>(192 + character / 64), static_cast<char>(128 + character % 64)});
    }
  }
  return texts;
}

}  // namespace

std::string BpeFile(const BpeFileOptions& options) {
  std::vector<std::string> tokens = ByteTexts();
  std::vector<std::string> merges;
  for (const auto& [left, right] : options.merges) {
    merges.push_back(left + " " + right);
    const std::string result = left + right;
    if (std::find(tokens.begin(), tokens.end(), result) == tokens.end()) tokens.push_back(result);
  }
  std::vector<int32_t> types(tokens.size(), 1);
  for (const SpecialToken& special : options.specials) {
    tokens.push_back(special.text);
    types.push_back(special.type);
  }
  GgufWriter writer;
  writer.AddString("tokenizer.ggml.model", "gpt2");
  writer.AddString("tokenizer.ggml.pre", options.pre);
  writer.AddStringArray("tokenizer.ggml.tokens", tokens);
  writer.AddI32Array("tokenizer.ggml.token_type", types);
  writer.AddStringArray("tokenizer.ggml.merges", merges);
  return writer.Finish();
}

std::string SpmFile(const std::vector<SpmToken>& tokens) {
  std::vector<std::string> texts = {"<unk>", "<s>", "</s>"};
  std::vector<int32_t> types = {2, 3, 3};
  std::vector<float> scores = {0, 0, 0};
  for (int byte = 0; byte < 256; ++byte) {
    texts.push_back(absl::StrFormat("<0x%02X>", byte));
    types.push_back(6);
    scores.push_back(0);
  }
  for (const SpmToken& token : tokens) {
    texts.push_back(token.text);
    types.push_back(1);
    scores.push_back(token.score);
  }
  GgufWriter writer;
  writer.AddString("tokenizer.ggml.model", "llama");
  writer.AddStringArray("tokenizer.ggml.tokens", texts);
  writer.AddI32Array("tokenizer.ggml.token_type", types);
  writer.AddF32Array("tokenizer.ggml.scores", scores);
  return writer.Finish();
}

}  // namespace packtrain

#include "coordinator/cli/tokenize_command.h"

#include <cstdio>
#include <iostream>
#include <iterator>

#include "absl/strings/escaping.h"
#include "absl/strings/str_join.h"
#include "common/base/status_macros.h"
#include "common/weights/gguf.h"
#include "coordinator/tokenizer/tokenizer.h"

namespace packtrain {

absl::Status RunTokenize(const TokenizeOptions& options) {
  ASSIGN_OR_RETURN(const std::unique_ptr<GgufFile> file, GgufFile::Open(options.model_path));
  ASSIGN_OR_RETURN(const std::unique_ptr<Tokenizer> tokenizer, Tokenizer::Create(*file));
  std::string text = options.text;
  if (!options.has_text) {
    text.assign(std::istreambuf_iterator<char>(std::cin), std::istreambuf_iterator<char>());
  }
  const std::vector<TokenId> ids = tokenizer->Encode(
      text, {.add_special = options.add_special, .parse_special = options.parse_special});
  if (options.ids_only) {
    std::printf("%s\n", absl::StrJoin(ids, " ").c_str());
    return absl::OkStatus();
  }
  for (TokenId id : ids) {
    const std::string_view piece = tokenizer->Piece(id, true);
    const std::string shown = absl::Utf8SafeCEscape(absl::string_view(piece.data(), piece.size()));
    std::printf("%d\t\"%s\"\n", id, shown.c_str());
  }
  return absl::OkStatus();
}

}  // namespace packtrain

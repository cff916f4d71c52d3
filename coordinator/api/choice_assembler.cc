#include "coordinator/api/choice_assembler.h"

#include <utility>

namespace packtrain {

ChoiceAssembler::ChoiceAssembler(Options options)
    : options_(std::move(options)),
      detokenizer_(options_.tokenizer),
      stop_(options_.stop),
      splitter_(options_.starts_in_reasoning) {}

void ChoiceAssembler::AddEcho(std::string text, std::vector<TokenEvent> logprobs) {
  delta_.content = std::move(text);
  if (options_.logprobs) delta_.logprobs = std::move(logprobs);
}

// The tags that enclose reasoning are control tokens in some models and have no text there; the
// splitter needs them.
std::string ChoiceAssembler::TextOf(TokenId id) {
  if (options_.split_reasoning && options_.tokenizer->kind(id) == TokenKind::kControl) {
    const std::string_view piece = options_.tokenizer->Piece(id, /*show_special=*/true);
    if (piece == "<think>" || piece == "</think>") {
      return detokenizer_.Finish() + std::string(piece);
    }
  }
  return detokenizer_.Add(id);
}

void ChoiceAssembler::AddText(std::string_view text) {
  if (!options_.split_reasoning) {
    delta_.content += text;
    return;
  }
  SplitText split = splitter_.Add(text);
  delta_.reasoning += split.reasoning;
  delta_.content += split.content;
}

void ChoiceAssembler::Add(const TokenEvent& token) {
  if (stopped()) return;
  ++num_tokens_;
  if (options_.split_reasoning && splitter_.in_reasoning()) ++num_reasoning_tokens_;
  if (options_.token_ids) delta_.token_ids.push_back(token.id);
  if (!options_.ignore_eos && options_.tokenizer->IsEndOfGeneration(token.id)) return;
  if (options_.logprobs) delta_.logprobs.push_back(token);
  AddText(stop_.Add(TextOf(token.id)));
}

void ChoiceAssembler::Finish() {
  if (!stopped()) {
    AddText(stop_.Add(detokenizer_.Finish()));
    AddText(stop_.Finish());
  }
  SplitText rest = splitter_.Finish();
  delta_.reasoning += rest.reasoning;
  delta_.content += rest.content;
}

ChoiceDelta ChoiceAssembler::Take() { return std::exchange(delta_, ChoiceDelta()); }

}  // namespace packtrain

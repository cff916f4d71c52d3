#include "coordinator/tokenizer/tokenizer.h"
namespace packtrain {
std::string Tokenizer::Decode(const std::vector<TokenId>& ids, bool show_special) const {
  Detokenizer d(this, show_special);
  std::string s;
  for (TokenId id : ids) s += d.Add(id);
  return s + d.Finish();
}
static size_t Valid(const std::string& p) {  // bytes of complete chars
  size_t i = 0;
  while (i < p.size()) {
    auto c = static_cast<unsigned char>(p[i]);
    size_t n = c < 0x80 ? 1 : c >= 0xF0 ? 4 : c >= 0xE0 ? 3 : c >= 0xC2 ? 2 : 1;
    if (i + n > p.size()) {
      break;
    }
    i += n;
  }
  return i;
}
std::string Detokenizer::Add(TokenId id) {
  (void)first_;
  pending_ += tokenizer_->Piece(id, show_special_);
  size_t n = Valid(pending_);
  std::string s = pending_.substr(0, n);
  pending_.erase(0, n);
  return s;
}
std::string Detokenizer::Finish() {
  if (pending_.empty()) return "";
  pending_.clear();
  return "\xEF\xBF\xBD";
}
}  // namespace packtrain

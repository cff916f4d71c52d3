#include "coordinator/tokenizer/utf8.h"

#include <cstdint>

namespace packtrain {

Utf8Front ReadUtf8(std::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<uint8_t>(text[i]); };
  const uint8_t lead = byte(0);
  if (lead < 0x80) return {Utf8Kind::kValid, 1};
  if (lead < 0xC2 || lead > 0xF4) return {Utf8Kind::kInvalid, 1};
  const size_t length = lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
  // The second byte has a narrower range where the rest would be overlong, a surrogate, or beyond
  // U+10FFFF.
  const uint8_t second_min = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
  const uint8_t second_max = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
  for (size_t i = 1; i < length; ++i) {
    if (i == text.size()) return {Utf8Kind::kIncomplete, i};
    const uint8_t low = i == 1 ? second_min : 0x80;
    const uint8_t high = i == 1 ? second_max : 0xBF;
    if (byte(i) < low || byte(i) > high) return {Utf8Kind::kInvalid, i};
  }
  return {Utf8Kind::kValid, length};
}

size_t ValidUtf8Prefix(std::string_view text) {
  size_t size = 0;
  while (size < text.size()) {
    const Utf8Front front = ReadUtf8(text.substr(size));
    if (front.kind != Utf8Kind::kValid) break;
    size += front.length;
  }
  return size;
}

}  // namespace packtrain

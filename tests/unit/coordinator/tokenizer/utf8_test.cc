// Every code point and every damaged form of it.

#include "coordinator/tokenizer/utf8.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <string>

namespace packtrain {
namespace {

std::string EncodeUtf8(uint32_t c) {
  const auto tail = [&](int shift) { return static_cast<char>(0x80 | (c >> shift & 0x3F)); };
  if (c < 0x80) return {static_cast<char>(c)};
  if (c < 0x800) return {static_cast<char>(0xC0 | c >> 6), tail(0)};
  if (c < 0x10000) return {static_cast<char>(0xE0 | c >> 12), tail(6), tail(0)};
  return {static_cast<char>(0xF0 | c >> 18), tail(12), tail(6), tail(0)};
}

TEST(Utf8Test, ExactlyTheCodePointsWithoutSurrogatesAreValid) {
  for (uint32_t c = 0; c < 0x120000; ++c) {
    const std::string text = EncodeUtf8(c) + "a";
    const Utf8Front front = ReadUtf8(text);
    const bool valid = c < 0xD800 || (c > 0xDFFF && c < 0x110000);
    ASSERT_EQ(front.kind == Utf8Kind::kValid, valid) << c;
    if (!valid) continue;
    ASSERT_EQ(front.length, text.size() - 1) << c;
    for (size_t size = 1; size < front.length; ++size) {
      const Utf8Front cut = ReadUtf8(std::string_view(text).substr(0, size));
      ASSERT_EQ(cut.kind, Utf8Kind::kIncomplete) << c;
      ASSERT_EQ(cut.length, size);
    }
  }
}

TEST(Utf8Test, OverlongFormsAreInvalid) {
  for (const char* text : {"\xC0\x80", "\xC1\xBF", "\xE0\x80\x80", "\xE0\x9F\xBF",
                           "\xF0\x80\x80\x80", "\xF0\x8F\xBF\xBF", "\x80", "\xFE"}) {
    EXPECT_EQ(ReadUtf8(text).kind, Utf8Kind::kInvalid);
    EXPECT_EQ(ReadUtf8(text).length, 1u);
  }
}

TEST(Utf8Test, AnInterruptedCharacterIsInvalidUpToTheInterruption) {
  EXPECT_EQ(ReadUtf8("\xF0\x9F\x98"
                     "a")
                .length,
            3u);
  EXPECT_EQ(ValidUtf8Prefix("ab\xC3\xA9\xC3"), 4u);
}

}  // namespace
}  // namespace packtrain

#pragma once

// What stands at the front of bytes that ought to be UTF-8.

#include <cstddef>
#include <string_view>

namespace packtrain {

enum class Utf8Kind { kValid, kInvalid, kIncomplete };

struct Utf8Front {
  Utf8Kind kind;
  size_t length;  // at least 1
};

// kValid: one character of `length` bytes. kInvalid: the longest run that may be shown as one
// U+FFFD. kIncomplete: all of `text` is the beginning of a character. REQUIRES: !text.empty().
Utf8Front ReadUtf8(std::string_view text);

// Bytes of the longest prefix that is valid UTF-8.
size_t ValidUtf8Prefix(std::string_view text);

}  // namespace packtrain

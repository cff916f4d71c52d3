// Which token wins where several match.

#include "coordinator/tokenizer/special_splitter.h"

#include <gtest/gtest.h>

namespace packtrain {
namespace {

Vocabulary Make(const std::vector<std::pair<std::string, TokenKind>>& tokens) {
  Vocabulary vocabulary;
  for (const auto& [text, kind] : tokens) {
    vocabulary.texts.push_back(text);
    vocabulary.kinds.push_back(kind);
  }
  return vocabulary;
}

// "plain[id:text]plain"
std::string Show(const SpecialSplitter& splitter, std::string_view text, bool parse_special) {
  std::string shown;
  for (const SpecialSplitter::Fragment& fragment : splitter.Split(text, parse_special)) {
    const std::string inner(fragment.text);
    shown +=
        fragment.special < 0 ? inner : "[" + std::to_string(fragment.special) + ":" + inner + "]";
  }
  return shown;
}

TEST(SpecialSplitterTest, ControlTokensMatchOnlyWhenAskedUserDefinedAlways) {
  const SpecialSplitter splitter(Make({{"<c>", TokenKind::kControl},
                                       {"<k>", TokenKind::kUnknown},
                                       {"<u>", TokenKind::kUserDefined},
                                       {"<n>", TokenKind::kNormal}}));
  EXPECT_EQ(Show(splitter, "a<c><k><u><n>b", false), "a<c><k>[2:<u>]<n>b");
  EXPECT_EQ(Show(splitter, "a<c><k><u><n>b", true), "a[0:<c>][1:<k>][2:<u>]<n>b");
}

TEST(SpecialSplitterTest, TheLongerTokenWinsEvenIfItBeginsLater) {
  const SpecialSplitter splitter(
      Make({{"xab", TokenKind::kControl}, {"abcd", TokenKind::kControl}}));
  EXPECT_EQ(Show(splitter, "xabcd xab", true), "x[1:abcd] [0:xab]");
}

TEST(SpecialSplitterTest, ATokenTakesItsOccurrencesFromTheLeft) {
  const SpecialSplitter splitter(Make({{"aa", TokenKind::kControl}}));
  EXPECT_EQ(Show(splitter, "aaaaa", true), "[0:aa][0:aa]a");
}

TEST(SpecialSplitterTest, AnEmptyTokenMatchesNothing) {
  const SpecialSplitter splitter(Make({{"", TokenKind::kControl}}));
  EXPECT_EQ(Show(splitter, "ab", true), "ab");
  EXPECT_EQ(Show(splitter, "", true), "");
}

}  // namespace
}  // namespace packtrain

// Stop strings and reasoning tags, with the text cut into pieces at every place.

#include "coordinator/api/text_filters.h"

#include <gtest/gtest.h>

#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace packtrain {
namespace {

// What comes out when `text` arrives in two pieces, cut at `at`.
std::pair<std::string, bool> Stopped(std::string_view text, std::vector<std::string> stops,
                                     size_t at) {
  StopMatcher matcher(std::move(stops));
  std::string out = matcher.Add(text.substr(0, at));
  out += matcher.Add(text.substr(at));
  out += matcher.Finish();
  return {out, matcher.matched()};
}

TEST(StopMatcherTest, CutsAtTheFirstStopWhereverTheTextIsSplit) {
  const std::string text = "one two\n\nthree END four";
  for (size_t at = 0; at <= text.size(); ++at) {
    EXPECT_EQ(Stopped(text, {"END", "\n\n"}, at), std::make_pair(std::string("one two"), true));
    EXPECT_EQ(Stopped(text, {" four", "END"}, at),
              std::make_pair(std::string("one two\n\nthree "), true));
    EXPECT_EQ(Stopped(text, {"five", "ENDE"}, at), std::make_pair(text, false));
    EXPECT_EQ(Stopped(text, {""}, at), std::make_pair(text, false));
  }
}

TEST(StopMatcherTest, HoldsBackNoMoreThanMayBelongToAStop) {
  StopMatcher matcher({"aab", "xyz"});
  EXPECT_EQ(matcher.Add("caa"), "c");
  EXPECT_EQ(matcher.Add("a"), "a");  // "aa" may still become "aab"
  EXPECT_EQ(matcher.Add("x"), "aa");
  EXPECT_EQ(matcher.Add("y"), "");
  EXPECT_EQ(matcher.Add("-"), "xy-");
  EXPECT_EQ(matcher.Add("aab and more"), "");
  EXPECT_TRUE(matcher.matched());
  EXPECT_EQ(matcher.Add("text"), "");
  EXPECT_EQ(matcher.Finish(), "");
}

SplitText Split(std::string_view text, bool open, size_t at) {
  ReasoningSplitter splitter(open);
  SplitText out = splitter.Add(text.substr(0, at));
  for (SplitText part : {splitter.Add(text.substr(at)), splitter.Finish()}) {
    out.reasoning += part.reasoning;
    out.content += part.content;
  }
  return out;
}

struct SplitCase {
  const char* text;
  bool open;
  const char* reasoning;
  const char* content;
};

TEST(ReasoningSplitterTest, SplitsWhereverTheTextIsCut) {
  const std::vector<SplitCase> cases = {
      {"because\n</think>\n\nanswer\n", true, "because", "answer\n"},
      {"\nbecause</think>answer", true, "because", "answer"},
      {"a\nb\n\nc </think> d", true, "a\nb\n\nc ", " d"},
      {"</think>answer", true, "", "answer"},
      {"never closed", true, "never closed", ""},
      {"a </thin b", true, "a </thin b", ""},
      {"plain answer", false, "", "plain answer"},
      {"\n\nplain", false, "", "\n\nplain"},
      {"<think>\nr\n</think>\nc", false, "r", "c"},
      {" \n<think>r</think>c", false, "r", "c"},
      {"<thin air", false, "", "<thin air"},
      {"a <think>b</think>", false, "", "a <think>b</think>"},
      {"r</think>c</think>d", true, "r", "c</think>d"},
      {"", true, "", ""},
      {"", false, "", ""},
  };
  for (const SplitCase& test_case : cases) {
    for (size_t at = 0; at <= std::string_view(test_case.text).size(); ++at) {
      const SplitText out = Split(test_case.text, test_case.open, at);
      EXPECT_EQ(out.reasoning, test_case.reasoning) << test_case.text << " at " << at;
      EXPECT_EQ(out.content, test_case.content) << test_case.text << " at " << at;
    }
  }
}

TEST(SafePrefixTest, StopsBeforeTheLongestBeginningOfTheMark) {
  EXPECT_EQ(SafePrefix("abcab", "abd"), 3U);
  EXPECT_EQ(SafePrefix("abc", "abd"), 3U);
  EXPECT_EQ(SafePrefix("", "abd"), 0U);
  EXPECT_EQ(SafePrefix("x", "x"), 1U);
}

}  // namespace
}  // namespace packtrain

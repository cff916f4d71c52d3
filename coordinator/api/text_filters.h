#pragma once

// What happens to generated text on its way out: cut at stop strings, split into reasoning and
// answer. Both work on a stream of pieces and hold back only what may still turn out otherwise.

#include <string>
#include <string_view>
#include <vector>

namespace packtrain {

// Passes text on up to the first occurrence of any stop string; never emits a part of one.
class StopMatcher {
 public:
  // Empty strings are ignored.
  explicit StopMatcher(std::vector<std::string> stops);

  // The text that is certain not to belong to a stop string. After a match: nothing more.
  std::string Add(std::string_view text);
  // What is still held back, once no more text will come.
  std::string Finish();
  bool matched() const { return matched_; }

 private:
  std::vector<std::string> stops_;
  std::string held_;
  bool matched_ = false;
};

struct SplitText {
  std::string reasoning;
  std::string content;
};

// Splits at <think> and </think>. Line breaks next to the tags belong to neither part.
class ReasoningSplitter {
 public:
  // `open`: the prompt ends inside a <think> block.
  explicit ReasoningSplitter(bool open) : state_(open ? State::kReasoning : State::kStart) {}

  SplitText Add(std::string_view text);
  SplitText Finish();
  bool in_reasoning() const { return state_ == State::kReasoning; }

 private:
  enum class State { kStart, kReasoning, kContent };

  bool Advance(SplitText* out);

  State state_;
  std::string held_;
  bool at_start_of_part_ = true;  // line breaks here are dropped
};

// Number of leading bytes of `text` that cannot be the beginning of `mark` reaching beyond its end.
size_t SafePrefix(std::string_view text, std::string_view mark);

}  // namespace packtrain

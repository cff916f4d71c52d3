#include "coordinator/api/text_filters.h"

#include <algorithm>
#include <utility>

namespace packtrain {
namespace {

constexpr std::string_view kOpen = "<think>";
constexpr std::string_view kClose = "</think>";
constexpr std::string_view kBlank = " \t\r\n";

}  // namespace

size_t SafePrefix(std::string_view text, std::string_view mark) {
  size_t length = std::min(text.size(), mark.size() - 1);
  while (length > 0 && text.substr(text.size() - length) != mark.substr(0, length)) --length;
  return text.size() - length;
}

// --- StopMatcher ---------------------------------------------------------------------------------

StopMatcher::StopMatcher(std::vector<std::string> stops) : stops_(std::move(stops)) {
  std::erase(stops_, "");
}

std::string StopMatcher::Add(std::string_view text) {
  if (matched_) return "";
  held_ += text;
  size_t safe = held_.size();
  size_t found = std::string::npos;
  for (const std::string& stop : stops_) {
    found = std::min(found, held_.find(stop));
    safe = std::min(safe, SafePrefix(held_, stop));
  }
  if (found != std::string::npos) {
    matched_ = true;
    held_.resize(found);
    return std::exchange(held_, "");
  }
  std::string out = held_.substr(0, safe);
  held_.erase(0, safe);
  return out;
}

std::string StopMatcher::Finish() { return std::exchange(held_, ""); }

// --- ReasoningSplitter ---------------------------------------------------------------------------

// Handles one tag or one stretch of text; false when no more can be decided.
bool ReasoningSplitter::Advance(SplitText* out) {
  if (state_ == State::kStart) {
    const size_t begin = std::min(held_.find_first_not_of(kBlank), held_.size());
    const std::string_view rest = std::string_view(held_).substr(begin);
    if (rest.starts_with(kOpen)) {
      held_.erase(0, begin + kOpen.size());
      state_ = State::kReasoning;
      at_start_of_part_ = true;
      return true;
    }
    if (kOpen.starts_with(rest)) return false;
    state_ = State::kContent;
    at_start_of_part_ = false;
    return true;
  }
  if (at_start_of_part_) {
    held_.erase(0, std::min(held_.find_first_not_of("\r\n"), held_.size()));
    if (held_.empty()) return false;
  }
  if (state_ == State::kContent) {
    at_start_of_part_ = false;
    out->content += std::exchange(held_, "");
    return false;
  }
  const size_t close = held_.find(kClose);
  size_t end = close != std::string::npos ? close : SafePrefix(held_, kClose);
  // Line breaks before a tag that may still come.
  while (end > 0 && (held_[end - 1] == '\n' || held_[end - 1] == '\r')) --end;
  if (end > 0) at_start_of_part_ = false;
  out->reasoning += held_.substr(0, end);
  if (close == std::string::npos) {
    held_.erase(0, end);
    return false;
  }
  held_.erase(0, close + kClose.size());
  state_ = State::kContent;
  at_start_of_part_ = true;
  return true;
}

SplitText ReasoningSplitter::Add(std::string_view text) {
  held_ += text;
  SplitText out;
  while (!held_.empty() && Advance(&out)) {
  }
  return out;
}

SplitText ReasoningSplitter::Finish() {
  SplitText out;
  (state_ == State::kReasoning ? out.reasoning : out.content) = std::exchange(held_, "");
  return out;
}

}  // namespace packtrain

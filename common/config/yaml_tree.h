#pragma once

// YAML as a plain tree with line numbers, read from hostile text within bounds. Anchors, aliases,
// tags, several documents and double keys are refused.

#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"

namespace packtrain {

struct YamlNode {
  enum class Kind { kNull, kScalar, kList, kMap } kind = Kind::kNull;
  int line = 0;  // from 1
  std::string scalar;
  std::vector<YamlNode> list;
  struct Entry;
  std::vector<Entry> map;  // in the order of the text
};

struct YamlNode::Entry {
  std::string key;
  int line = 0;
  YamlNode value;
};

// Errors: INVALID_ARGUMENT, "source:line: what".
absl::StatusOr<YamlNode> ParseYaml(std::string_view text, const std::string& source);

}  // namespace packtrain

#include "common/config/yaml_fields.h"

#include <algorithm>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "common/base/status_macros.h"

namespace packtrain {
namespace {

absl::string_view KindName(const YamlNode& node) {
  switch (node.kind) {
    case YamlNode::Kind::kNull:
      return "nothing";
    case YamlNode::Kind::kScalar:
      return "a single value";
    case YamlNode::Kind::kList:
      return "a list";
    case YamlNode::Kind::kMap:
      return "a map of keys";
  }
  return "";
}

}  // namespace

absl::Status YamlPlace::Error(absl::string_view what) const {
  return absl::InvalidArgumentError(
      absl::StrCat(*source, ":", line, ": ", path.empty() ? "" : path + ": ", what));
}

YamlPlace YamlPlace::Key(const std::string& key, int at) const {
  return {source, at, path.empty() ? key : absl::StrCat(path, ".", key)};
}

YamlPlace YamlPlace::Item(size_t i, int at) const {
  return {source, at, absl::StrCat(path, "[", i, "]")};
}

absl::Status ReadText(const YamlNode& node, const YamlPlace& place, std::string* out) {
  if (node.kind != YamlNode::Kind::kScalar) {
    return place.Error(absl::StrCat("is ", KindName(node), "; allowed: text"));
  }
  if (node.scalar.empty()) return place.Error("is empty; allowed: text");
  *out = node.scalar;
  return absl::OkStatus();
}

absl::Status ReadInt(const YamlNode& node, const YamlPlace& place, int least, int most, int* out) {
  int value = 0;
  if (node.kind != YamlNode::Kind::kScalar || !absl::SimpleAtoi(node.scalar, &value) ||
      value < least || value > most) {
    const std::string given = node.kind == YamlNode::Kind::kScalar
                                  ? absl::StrCat("\"", node.scalar, "\"")
                                  : std::string(KindName(node));
    return place.Error(
        absl::StrFormat("is %s; allowed: a whole number from %d to %d", given, least, most));
  }
  *out = value;
  return absl::OkStatus();
}

absl::Status ReadNumber(const YamlNode& node, const YamlPlace& place, double least, double most,
                        double* out) {
  std::string text;
  RETURN_IF_ERROR(ReadText(node, place, &text));
  if (!absl::SimpleAtod(text, out) || !(*out >= least) || !(*out <= most)) {
    return place.Error(
        absl::StrFormat("is \"%s\"; allowed: a number from %g to %g", text, least, most));
  }
  return absl::OkStatus();
}

absl::Status ReadGib(const YamlNode& node, const YamlPlace& place, double most, uint64_t* out) {
  double gib = 0;
  RETURN_IF_ERROR(ReadNumber(node, place, 0.25, most, &gib));
  *out = static_cast<uint64_t>(gib * (1 << 30));
  return absl::OkStatus();
}

absl::Status ReadWord(const YamlNode& node, const YamlPlace& place,
                      const std::vector<std::string>& words, size_t* out) {
  std::string text;
  RETURN_IF_ERROR(ReadText(node, place, &text));
  const auto it = std::find(words.begin(), words.end(), text);
  if (it == words.end()) {
    return place.Error(absl::StrFormat("is \"%s\"; allowed: %s", text, absl::StrJoin(words, ", ")));
  }
  *out = static_cast<size_t>(it - words.begin());
  return absl::OkStatus();
}

absl::Status ReadBool(const YamlNode& node, const YamlPlace& place,
                      const std::vector<std::string>& words, bool* out) {
  size_t index = 0;
  RETURN_IF_ERROR(ReadWord(node, place, words, &index));
  *out = index == 1;
  return absl::OkStatus();
}

absl::Status ReadMap(const YamlNode& node, const YamlPlace& place,
                     const std::map<std::string, YamlReader>& readers,
                     const std::vector<std::string>& required) {
  const auto keys = [&] {
    return absl::StrJoin(readers, ", ", [](std::string* out, const auto& r) { *out += r.first; });
  };
  if (node.kind != YamlNode::Kind::kMap) {
    return place.Error(absl::StrCat("is ", KindName(node), "; allowed: a map of ", keys()));
  }
  for (const YamlNode::Entry& entry : node.map) {
    const auto reader = readers.find(entry.key);
    if (reader == readers.end()) {
      return YamlPlace{place.source, entry.line, place.path}.Error(
          absl::StrFormat("unknown key \"%s\"; allowed: %s", entry.key, keys()));
    }
    RETURN_IF_ERROR(reader->second(entry.value, place.Key(entry.key, entry.line)));
  }
  for (const std::string& key : required) {
    const auto given = [&](const YamlNode::Entry& entry) { return entry.key == key; };
    if (std::none_of(node.map.begin(), node.map.end(), given)) {
      return place.Error(absl::StrFormat("key \"%s\" is missing", key));
    }
  }
  return absl::OkStatus();
}

absl::Status ReadList(const YamlNode& node, const YamlPlace& place, const YamlReader& reader) {
  if (node.kind != YamlNode::Kind::kList) {
    return place.Error(absl::StrCat("is ", KindName(node), "; allowed: a list"));
  }
  for (size_t i = 0; i < node.list.size(); ++i) {
    RETURN_IF_ERROR(reader(node.list[i], place.Item(i, node.list[i].line)));
  }
  return absl::OkStatus();
}

}  // namespace packtrain

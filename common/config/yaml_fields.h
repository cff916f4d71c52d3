#pragma once

// Reads typed values out of a YamlNode; every error names file, line, the path of keys, the value
// and what is allowed.

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "common/config/yaml_tree.h"

namespace packtrain {

// A place in the text: file, line, and the path of keys down to it.
struct YamlPlace {
  const std::string* source;
  int line;
  std::string path;

  absl::Status Error(absl::string_view what) const;  // INVALID_ARGUMENT
  YamlPlace Key(const std::string& key, int at) const;
  YamlPlace Item(size_t i, int at) const;
};

absl::Status ReadText(const YamlNode& node, const YamlPlace& place, std::string* out);
absl::Status ReadInt(const YamlNode& node, const YamlPlace& place, int least, int most, int* out);
absl::Status ReadNumber(const YamlNode& node, const YamlPlace& place, double least, double most,
                        double* out);
// GiB, at least a quarter of one, as bytes.
absl::Status ReadGib(const YamlNode& node, const YamlPlace& place, double most, uint64_t* out);
// One of several words, given by its index.
absl::Status ReadWord(const YamlNode& node, const YamlPlace& place,
                      const std::vector<std::string>& words, size_t* out);
// `words`: for false and for true.
absl::Status ReadBool(const YamlNode& node, const YamlPlace& place,
                      const std::vector<std::string>& words, bool* out);

using YamlReader = std::function<absl::Status(const YamlNode& value, const YamlPlace& place)>;
// A map whose keys are those of `readers`, `required` among them.
absl::Status ReadMap(const YamlNode& node, const YamlPlace& place,
                     const std::map<std::string, YamlReader>& readers,
                     const std::vector<std::string>& required);
absl::Status ReadList(const YamlNode& node, const YamlPlace& place, const YamlReader& reader);

}  // namespace packtrain

#include "common/config/yaml_tree.h"

#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <exception>
#include <sstream>

#include "absl/strings/str_format.h"

namespace packtrain {
namespace {

constexpr size_t kTextBytesMax = 1 << 20;
constexpr int kNodesMax = 20000;
constexpr int kDepthMax = 16;

// Ends the parse from within an event; never leaves this file.
struct Refused : std::exception {
  Refused(const YAML::Mark& mark, std::string text) : line(mark.line + 1), what_text(text) {}
  int line;
  std::string what_text;
};

class TreeBuilder : public YAML::EventHandler {
 public:
  void OnDocumentStart(const YAML::Mark& mark) override {
    if (documents_++ > 0) throw Refused(mark, "only one document is allowed");
  }
  void OnDocumentEnd() override {}
  void OnNull(const YAML::Mark& mark, YAML::anchor_t anchor) override {
    Add(mark, anchor, "", YamlNode::Kind::kNull);
  }
  void OnAlias(const YAML::Mark& mark, YAML::anchor_t) override {
    throw Refused(mark, "anchors and aliases are not allowed");
  }
  void OnScalar(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                const std::string& value) override {
    Add(mark, anchor, tag, YamlNode::Kind::kScalar).scalar = value;
  }
  void OnSequenceStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                       YAML::EmitterStyle::value) override {
    Open(mark, anchor, tag, YamlNode::Kind::kList);
  }
  void OnSequenceEnd() override { open_.pop_back(); }
  void OnMapStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                  YAML::EmitterStyle::value) override {
    Open(mark, anchor, tag, YamlNode::Kind::kMap);
  }
  void OnMapEnd() override { open_.pop_back(); }

  YamlNode Take() { return std::move(root_); }

 private:
  struct Level {
    YamlNode* node;
    bool key_read = false;  // of a map: the last entry waits for its value
  };

  YamlNode& Add(const YAML::Mark& mark, YAML::anchor_t anchor, const std::string& tag,
                YamlNode::Kind kind) {
    if (anchor != 0) throw Refused(mark, "anchors and aliases are not allowed");
    // "?" and "!" are what untagged plain and quoted scalars carry.
    if (!tag.empty() && tag != "?" && tag != "!") throw Refused(mark, "tags are not allowed");
    if (++nodes_ > kNodesMax) {
      throw Refused(mark, absl::StrFormat("more than %d values", kNodesMax));
    }
    YamlNode node;
    node.kind = kind;
    node.line = mark.line + 1;
    if (open_.empty()) {
      root_ = std::move(node);
      return root_;
    }
    Level& level = open_.back();
    if (level.node->kind == YamlNode::Kind::kList) {
      return level.node->list.emplace_back(std::move(node));
    }
    std::vector<YamlNode::Entry>& entries = level.node->map;
    if (!level.key_read) {
      if (kind != YamlNode::Kind::kScalar) throw Refused(mark, "a key must be plain text");
      entries.push_back({.key = "", .line = node.line, .value = {}});
      level.key_read = true;
      key_ = std::move(node);
      return key_;
    }
    level.key_read = false;
    entries.back().key = key_.scalar;
    const auto same = [&](const YamlNode::Entry& e) { return e.key == entries.back().key; };
    if (std::count_if(entries.begin(), entries.end(), same) > 1) {
      throw Refused(mark, absl::StrFormat("key \"%s\" appears twice", entries.back().key));
    }
    entries.back().value = std::move(node);
    return entries.back().value;
  }

  void Open(const YAML::Mark& mark, YAML::anchor_t anchor, const std::string& tag,
            YamlNode::Kind kind) {
    if (open_.size() == kDepthMax) {
      throw Refused(mark, absl::StrFormat("nested deeper than %d levels", kDepthMax));
    }
    // Pointers stay valid: a parent's children are not moved while one of them is open.
    open_.push_back({.node = &Add(mark, anchor, tag, kind)});
  }

  YamlNode root_;
  YamlNode key_;
  std::vector<Level> open_;
  int nodes_ = 0;
  int documents_ = 0;
};

}  // namespace

absl::StatusOr<YamlNode> ParseYaml(std::string_view text, const std::string& source) {
  if (text.size() > kTextBytesMax) {
    return absl::InvalidArgumentError(
        absl::StrFormat("%s: %d bytes; at most %d are read", source, text.size(), kTextBytesMax));
  }
  const auto error = [&](int line, std::string_view what) {
    return absl::InvalidArgumentError(absl::StrFormat("%s:%d: %s", source, line, what));
  };
  try {
    std::istringstream stream{std::string(text)};
    YAML::Parser parser(stream);
    TreeBuilder builder;
    while (parser.HandleNextDocument(builder)) {
    }
    return builder.Take();
  } catch (const Refused& refused) {
    return error(refused.line, refused.what_text);
  } catch (const YAML::Exception& exception) {
    return error(exception.mark.line + 1, exception.msg);
  } catch (const std::exception& exception) {
    return error(1, exception.what());
  }
}

}  // namespace packtrain

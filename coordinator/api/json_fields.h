#pragma once

// Typed access to the fields of a JSON object from outside. null counts as absent, because clients
// send it for what they do not set. Errors name the field, what it is and what is allowed.

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace packtrain {

class JsonFields {
 public:
  // `object` is borrowed; `prefix` goes in front of names in messages ("messages[3].").
  explicit JsonFields(const nlohmann::json& object, std::string prefix = "")
      : object_(object), prefix_(std::move(prefix)) {}

  // nullptr if absent.
  const nlohmann::json* Find(const char* name) const;
  std::string Name(const char* name) const { return prefix_ + name; }

  // Each leaves `*value` alone if the field is absent.
  absl::Status Read(const char* name, bool* value) const;
  absl::Status Read(const char* name, std::string* value) const;
  absl::Status Read(const char* name, int min, int max, int* value) const;
  absl::Status Read(const char* name, int64_t min, int64_t max, int64_t* value) const;
  // [min, max], or (min, max] if `open`.
  absl::Status Read(const char* name, float min, float max, bool open, float* value) const;

  // INVALID_ARGUMENT: "<field> must be <allowed>, not <value>".
  absl::Status Wrong(const char* name, const std::string& allowed) const;

 private:
  const nlohmann::json& object_;
  std::string prefix_;
};

// Parses text of at most 64 levels; errors (INVALID_ARGUMENT) say what is wrong and where.
absl::StatusOr<nlohmann::json> ParseJson(std::string_view text);

// `value` in short, for messages.
std::string Excerpt(const nlohmann::json& value);

}  // namespace packtrain

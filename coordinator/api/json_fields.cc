#include "coordinator/api/json_fields.h"

#include <limits>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/base/status_macros.h"
#include "coordinator/api/api_error.h"

namespace packtrain {

using ::nlohmann::json;

namespace {

constexpr int kDepthMax = 64;

// Copies of a document and its printing recurse, so depth is bounded before anything is built.
bool TooDeep(std::string_view text) {
  int depth = 0;
  bool in_string = false;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (in_string) {
      if (c == '\\') {
        ++i;
      } else if (c == '"') {
        in_string = false;
      }
    } else if (c == '"') {
      in_string = true;
    } else if (c == '[' || c == '{') {
      if (++depth > kDepthMax) return true;
    } else if (c == ']' || c == '}') {
      --depth;
    }
  }
  return false;
}

}  // namespace

absl::StatusOr<json> ParseJson(std::string_view text) {
  if (TooDeep(text)) {
    return absl::InvalidArgumentError(
        absl::StrCat("JSON nested deeper than ", kDepthMax, " levels"));
  }
  try {
    return json::parse(text.begin(), text.end());
  } catch (const json::exception& error) {  // the library has no other way to say where
    return absl::InvalidArgumentError(absl::StrCat("not valid JSON: ", error.what()));
  }
}

std::string Excerpt(const json& value) {
  if (value.is_object()) return "an object";
  if (value.is_array()) return absl::StrCat("an array of ", value.size());
  std::string text = value.dump(-1, ' ', true, json::error_handler_t::replace);
  if (text.size() > 60) text = text.substr(0, 57) + "...";
  return text;
}

const json* JsonFields::Find(const char* name) const {
  const auto found = object_.find(name);
  return found == object_.end() || found->is_null() ? nullptr : &*found;
}

absl::Status JsonFields::Wrong(const char* name, const std::string& allowed) const {
  return FieldError(Name(name), absl::StrCat(Name(name), " must be ", allowed, ", not ",
                                             Excerpt(object_.at(name))));
}

absl::Status JsonFields::Read(const char* name, bool* value) const {
  const json* field = Find(name);
  if (field == nullptr) return absl::OkStatus();
  if (!field->is_boolean()) return Wrong(name, "true or false");
  *value = field->get<bool>();
  return absl::OkStatus();
}

absl::Status JsonFields::Read(const char* name, std::string* value) const {
  const json* field = Find(name);
  if (field == nullptr) return absl::OkStatus();
  if (!field->is_string()) return Wrong(name, "a string");
  *value = field->get<std::string>();
  return absl::OkStatus();
}

absl::Status JsonFields::Read(const char* name, int64_t min, int64_t max, int64_t* value) const {
  const json* field = Find(name);
  if (field == nullptr) return absl::OkStatus();
  // Some clients send 16.0 for 16.
  int64_t number = 0;
  bool valid = field->is_number();
  if (field->is_number_unsigned()) {
    valid = field->get<uint64_t>() <= uint64_t{std::numeric_limits<int64_t>::max()};
    if (valid) number = field->get<int64_t>();
  } else if (field->is_number_integer()) {
    number = field->get<int64_t>();
  } else if (valid) {
    const double real = field->get<double>();
    valid =
        real >= -9e15 && real <= 9e15 && real == static_cast<double>(static_cast<int64_t>(real));
    if (valid) number = static_cast<int64_t>(real);
  }
  if (!valid || number < min || number > max) {
    return Wrong(name, absl::StrCat("an integer from ", min, " to ", max));
  }
  *value = number;
  return absl::OkStatus();
}

absl::Status JsonFields::Read(const char* name, int min, int max, int* value) const {
  int64_t wide = *value;
  RETURN_IF_ERROR(Read(name, int64_t{min}, int64_t{max}, &wide));
  *value = static_cast<int>(wide);
  return absl::OkStatus();
}

absl::Status JsonFields::Read(const char* name, float min, float max, bool open,
                              float* value) const {
  const json* field = Find(name);
  if (field == nullptr) return absl::OkStatus();
  const double number = field->is_number() ? field->get<double>() : 0;
  // Compared as float: a tiny positive double must not become a forbidden zero.
  const auto narrow = static_cast<float>(number);
  if (!field->is_number() || !(narrow >= min && narrow <= max) || (open && narrow <= min)) {
    return Wrong(name, open ? absl::StrFormat("a number above %g and at most %g", min, max)
                            : absl::StrFormat("a number from %g to %g", min, max));
  }
  *value = narrow;
  return absl::OkStatus();
}

}  // namespace packtrain

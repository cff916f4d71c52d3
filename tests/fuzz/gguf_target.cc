#include "common/weights/gguf.h"
#include "tests/fuzz/fuzz_targets.h"

namespace packtrain {
namespace {

bool Inside(std::span<const std::byte> part, std::span<const std::byte> whole) {
  return part.empty() ||
         (part.data() >= whole.data() && part.data() + part.size() <= whole.data() + whole.size());
}

bool Inside(std::string_view part, std::span<const std::byte> whole) {
  return Inside(std::as_bytes(std::span(part.data(), part.size())), whole);
}

}  // namespace

std::string FuzzGguf(std::span<const std::byte> bytes) {
  const auto file = GgufFile::Parse(bytes, "fuzz.gguf");
  if (!file.ok()) {
    const std::string message(file.status().message());
    return message.starts_with("[") ? "" : "an error without its kind: " + message;
  }
  for (const auto& [key, value] : (*file)->metadata()) {
    if ((*file)->Find(key) != &value) return "a key cannot be found: " + key;
    if (!Inside(value.array_data, bytes)) return "an array lies outside the file: " + key;
    for (const std::string_view text : value.array_strings) {
      if (!Inside(text, bytes)) return "a string lies outside the file: " + key;
    }
    (void)(*file)->GetU32(key);
    (void)(*file)->GetF32(key);
    (void)(*file)->GetBool(key);
    (void)(*file)->GetString(key);
    (void)(*file)->GetIntArray(key);
    (void)(*file)->GetFloatArray(key);
    (void)(*file)->GetStringArray(key);
  }
  for (const GgufTensor& tensor : (*file)->tensors()) {
    if ((*file)->FindTensor(tensor.name) != &tensor) return "no such tensor: " + tensor.name;
    const std::span<const std::byte> data = (*file)->Data(tensor);
    if (data.size() != tensor.bytes || !Inside(data, bytes)) {
      return "a tensor lies outside the file: " + tensor.name;
    }
  }
  return "";
}

}  // namespace packtrain

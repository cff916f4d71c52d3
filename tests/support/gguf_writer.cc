#include "tests/support/gguf_writer.h"

#include <cstring>
#include <fstream>
#include <utility>

#include "common/base/check.h"
#include "common/weights/gguf.h"

namespace packtrain {
namespace {

constexpr size_t kAlignment = 32;

template <typename T>
void Append(std::string* out, T value) {
  char bytes[sizeof(T)];
  std::memcpy(bytes, &value, sizeof(T));
  out->append(bytes, sizeof(T));
}

void AppendString(std::string* out, std::string_view text) {
  Append<uint64_t>(out, text.size());
  out->append(text);
}

void AppendKey(std::string* out, std::string_view key, GgufValueType type) {
  AppendString(out, key);
  Append(out, type);
}

void AppendArrayKey(std::string* out, std::string_view key, GgufValueType element, size_t count) {
  AppendKey(out, key, GgufValueType::kArray);
  Append(out, element);
  Append<uint64_t>(out, count);
}

template <typename T>
void AppendArray(std::string* out, std::string_view key, GgufValueType element,
                 const std::vector<T>& values) {
  AppendArrayKey(out, key, element, values.size());
  for (const T value : values) Append(out, value);
}

void Pad(std::string* out) {
  out->resize((out->size() + kAlignment - 1) / kAlignment * kAlignment);
}

}  // namespace

void GgufWriter::AddU32(std::string_view key, uint32_t value) {
  AppendKey(&entries_, key, GgufValueType::kU32);
  Append(&entries_, value);
  ++num_entries_;
}

void GgufWriter::AddI32(std::string_view key, int32_t value) {
  AppendKey(&entries_, key, GgufValueType::kI32);
  Append(&entries_, value);
  ++num_entries_;
}

void GgufWriter::AddU64(std::string_view key, uint64_t value) {
  AppendKey(&entries_, key, GgufValueType::kU64);
  Append(&entries_, value);
  ++num_entries_;
}

void GgufWriter::AddF32(std::string_view key, float value) {
  AppendKey(&entries_, key, GgufValueType::kF32);
  Append(&entries_, value);
  ++num_entries_;
}

void GgufWriter::AddBool(std::string_view key, bool value) {
  AppendKey(&entries_, key, GgufValueType::kBool);
  Append<uint8_t>(&entries_, value);
  ++num_entries_;
}

void GgufWriter::AddString(std::string_view key, std::string_view value) {
  AppendKey(&entries_, key, GgufValueType::kString);
  AppendString(&entries_, value);
  ++num_entries_;
}

void GgufWriter::AddI32Array(std::string_view key, const std::vector<int32_t>& values) {
  AppendArray(&entries_, key, GgufValueType::kI32, values);
  ++num_entries_;
}

void GgufWriter::AddU32Array(std::string_view key, const std::vector<uint32_t>& values) {
  AppendArray(&entries_, key, GgufValueType::kU32, values);
  ++num_entries_;
}

void GgufWriter::AddF32Array(std::string_view key, const std::vector<float>& values) {
  AppendArray(&entries_, key, GgufValueType::kF32, values);
  ++num_entries_;
}

void GgufWriter::AddBoolArray(std::string_view key, const std::vector<bool>& values) {
  AppendArrayKey(&entries_, key, GgufValueType::kBool, values.size());
  for (const bool value : values) Append<uint8_t>(&entries_, value);
  ++num_entries_;
}

void GgufWriter::AddStringArray(std::string_view key, const std::vector<std::string>& values) {
  AppendArrayKey(&entries_, key, GgufValueType::kString, values.size());
  for (const std::string& value : values) AppendString(&entries_, value);
  ++num_entries_;
}

void GgufWriter::AddTensor(std::string_view name, TensorType type, std::vector<uint64_t> dims,
                           std::string bytes) {
  uint64_t rows = 1;
  for (size_t i = 1; i < dims.size(); ++i) rows *= dims[i];
  CHECK_MSG(bytes.size() == rows * RowBytes(type, dims.at(0)), name);
  tensors_.push_back({std::string(name), type, std::move(dims), std::move(bytes)});
}

void GgufWriter::AddF32Tensor(std::string_view name, std::vector<uint64_t> dims,
                              std::span<const float> values) {
  std::string bytes(values.size_bytes(), '\0');
  if (!values.empty()) std::memcpy(bytes.data(), values.data(), bytes.size());
  AddTensor(name, TensorType::kF32, std::move(dims), std::move(bytes));
}

std::string GgufWriter::Finish() const {
  std::string out = "GGUF";
  Append<uint32_t>(&out, 3);
  Append<uint64_t>(&out, tensors_.size());
  Append<uint64_t>(&out, num_entries_);
  out += entries_;
  uint64_t offset = 0;
  for (const Tensor& tensor : tensors_) {
    AppendString(&out, tensor.name);
    Append(&out, static_cast<uint32_t>(tensor.dims.size()));
    for (const uint64_t dim : tensor.dims) Append(&out, dim);
    Append(&out, tensor.type);
    Append(&out, offset);
    offset += (tensor.bytes.size() + kAlignment - 1) / kAlignment * kAlignment;
  }
  for (const Tensor& tensor : tensors_) {
    Pad(&out);
    out += tensor.bytes;
  }
  return out;
}

void GgufWriter::WriteTo(const std::string& path) const {
  std::ofstream file(path, std::ios::binary);
  const std::string bytes = Finish();
  file.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  file.close();
  CHECK_MSG(file.good(), path);
}

}  // namespace packtrain

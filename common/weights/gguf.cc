#include "common/weights/gguf.h"

#include <cstring>
#include <limits>
#include <optional>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/base/check.h"
#include "common/base/status_macros.h"
#include "common/weights/gguf_parser.h"
#include "common/weights/mapped_file.h"

namespace packtrain {
namespace {

// The value of an integer key of one piece; nullopt if absent.
absl::StatusOr<std::optional<uint64_t>> SplitKey(const GgufPiece& piece, std::string_view path,
                                                 std::string_view key) {
  for (const auto& [name, value] : piece.metadata) {
    if (name != key) continue;
    if (value.type != GgufValueType::kArray) {
      if (const auto* u = std::get_if<uint64_t>(&value.scalar)) return *u;
      const auto* i = std::get_if<int64_t>(&value.scalar);
      if (i != nullptr && *i >= 0) return static_cast<uint64_t>(*i);
    }
    return GgufError("bad_value_type", path, key, "must be an integer, not negative");
  }
  return std::nullopt;
}

std::string PieceSuffix(uint64_t number, uint64_t count) {
  return absl::StrFormat("-%05d-of-%05d.gguf", number, count);
}

// `piece` announces `count` pieces: is it the first, and does its name allow to find the others?
absl::Status CheckFirstPiece(const GgufPiece& piece, const std::string& path, uint64_t count) {
  constexpr uint64_t kPiecesMax = 65535;
  if (count > kPiecesMax) {
    return GgufError("split_count", path, "split.count",
                     absl::StrCat(count, ", allowed 0..", kPiecesMax));
  }
  ASSIGN_OR_RETURN(const std::optional<uint64_t> number, SplitKey(piece, path, "split.no"));
  if (number != 0) {
    return GgufError(
        "split_order", path, "split.no",
        absl::StrCat(number ? absl::StrCat(*number) : "absent",
                     ", must be 0: open the piece whose name ends in ", PieceSuffix(1, count)));
  }
  if (!path.ends_with(PieceSuffix(1, count))) {
    return GgufError("split_name", path, "split.count",
                     absl::StrCat(count, ", so the file name must end in ", PieceSuffix(1, count)));
  }
  return absl::OkStatus();
}

// Elements of an integer or bool array, widened.
template <typename T>
void Widen(std::span<const std::byte> data, std::vector<int64_t>* out) {
  for (size_t i = 0; i < out->size(); ++i) {
    T value;
    std::memcpy(&value, data.data() + i * sizeof(T), sizeof(T));
    (*out)[i] = static_cast<int64_t>(value);
  }
}

}  // namespace

uint64_t GgufTensor::elements() const {
  uint64_t product = 1;
  for (uint64_t dim : dims) product *= dim;
  return product;
}

struct GgufFile::Impl {
  std::vector<MappedFile> mappings;  // one for each shard, none after Parse
  std::vector<Shard> shards;
  std::vector<std::pair<std::string, GgufValue>> metadata;
  std::vector<GgufTensor> tensors;
  // Views of the two above.
  absl::flat_hash_map<std::string_view, size_t> key_index;
  absl::flat_hash_map<std::string_view, size_t> tensor_index;

  // Takes over the tensors of `piece`, and of the first piece the metadata.
  void AddPiece(GgufPiece piece, std::span<const std::byte> bytes, std::string path);
  absl::Status AddOtherPieces(uint64_t count);
  absl::Status CheckFirstPiece(const GgufPiece& piece, const std::string& path, uint64_t count);

  // To be called once all pieces are there.
  absl::Status BuildIndex();

  absl::Status Wrong(absl::StatusCode code, std::string_view kind, std::string_view key,
                     std::string_view what) const {
    return absl::Status(code, absl::StrFormat("[%s] %s: field '%s': %s", kind, shards[0].path,
                                              Printable(key), what));
  }
  absl::StatusOr<const GgufValue*> Get(std::string_view key, bool array) const;
};

void GgufFile::Impl::AddPiece(GgufPiece piece, std::span<const std::byte> bytes, std::string path) {
  for (GgufTensor& tensor : piece.tensors) {
    tensor.shard = static_cast<uint32_t>(shards.size());
    tensors.push_back(std::move(tensor));
  }
  if (shards.empty()) metadata = std::move(piece.metadata);
  shards.push_back({.path = std::move(path),
                    .version = piece.version,
                    .alignment = piece.alignment,
                    .data_offset = piece.data_offset,
                    .bytes = bytes});
}

absl::Status GgufFile::Impl::BuildIndex() {
  key_index.reserve(metadata.size());
  for (size_t i = 0; i < metadata.size(); ++i) key_index.emplace(metadata[i].first, i);
  tensor_index.reserve(tensors.size());
  for (size_t i = 0; i < tensors.size(); ++i) {
    if (tensor_index.emplace(tensors[i].name, i).second) continue;
    return GgufError("duplicate_tensor", shards[tensors[i].shard].path,
                     "tensor " + Printable(tensors[i].name), "stands in an earlier piece as well");
  }
  return absl::OkStatus();
}

absl::Status GgufFile::Impl::AddOtherPieces(uint64_t count) {
  const std::string first = shards[0].path;
  const std::string prefix = first.substr(0, first.size() - PieceSuffix(1, count).size());
  for (uint64_t i = 1; i < count; ++i) {
    const std::string path = absl::StrCat(prefix, PieceSuffix(i + 1, count));
    absl::StatusOr<MappedFile> mapping = MappedFile::Open(path);
    if (absl::IsNotFound(mapping.status())) {
      return GgufError("split_missing", first, "split.count",
                       absl::StrCat(count, ", but there is no ", path));
    }
    RETURN_IF_ERROR(mapping.status());
    ASSIGN_OR_RETURN(GgufPiece piece, ParseGgufPiece(mapping->bytes(), path));
    ASSIGN_OR_RETURN(const std::optional<uint64_t> its_count, SplitKey(piece, path, "split.count"));
    if (its_count != count) {
      return GgufError("split_count", path, "split.count",
                       absl::StrCat(its_count ? absl::StrCat(*its_count) : "absent",
                                    ", the first piece says ", count));
    }
    ASSIGN_OR_RETURN(const std::optional<uint64_t> number, SplitKey(piece, path, "split.no"));
    if (number != i) {
      return GgufError("split_order", path, "split.no",
                       absl::StrCat(number ? absl::StrCat(*number) : "absent", ", must be ", i));
    }
    AddPiece(std::move(piece), mapping->bytes(), path);
    mappings.push_back(*std::move(mapping));
  }
  return absl::OkStatus();
}

absl::StatusOr<const GgufValue*> GgufFile::Impl::Get(std::string_view key, bool array) const {
  const auto found = key_index.find(key);
  if (found == key_index.end()) {
    return Wrong(absl::StatusCode::kNotFound, "missing_key", key, "absent, but needed");
  }
  const GgufValue* value = &metadata[found->second].second;
  if ((value->type == GgufValueType::kArray) != array) {
    return Wrong(absl::StatusCode::kInvalidArgument, "bad_value_type", key,
                 array ? "a single value, must be an array" : "an array, must be a single value");
  }
  return value;
}

GgufFile::GgufFile(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
GgufFile::~GgufFile() = default;

absl::StatusOr<std::unique_ptr<GgufFile>> GgufFile::Open(const std::string& path) {
  ASSIGN_OR_RETURN(MappedFile mapping, MappedFile::Open(path));
  ASSIGN_OR_RETURN(GgufPiece piece, ParseGgufPiece(mapping.bytes(), path));
  auto impl = std::make_unique<Impl>();
  ASSIGN_OR_RETURN(const std::optional<uint64_t> split, SplitKey(piece, path, "split.count"));
  ASSIGN_OR_RETURN(const std::optional<uint64_t> total,
                   SplitKey(piece, path, "split.tensors.count"));
  const uint64_t count = split.value_or(0);
  if (count > 1) RETURN_IF_ERROR(CheckFirstPiece(piece, path, count));
  impl->AddPiece(std::move(piece), mapping.bytes(), path);
  impl->mappings.push_back(std::move(mapping));
  if (count > 1) RETURN_IF_ERROR(impl->AddOtherPieces(count));
  RETURN_IF_ERROR(impl->BuildIndex());
  if (count > 1 && total != impl->tensors.size()) {
    return GgufError("split_tensor_total", path, "split.tensors.count",
                     absl::StrCat(total ? absl::StrCat(*total) : "absent", ", the pieces hold ",
                                  impl->tensors.size()));
  }
  return std::unique_ptr<GgufFile>(new GgufFile(std::move(impl)));
}

absl::StatusOr<std::unique_ptr<GgufFile>> GgufFile::Parse(std::span<const std::byte> bytes,
                                                          std::string name) {
  ASSIGN_OR_RETURN(GgufPiece piece, ParseGgufPiece(bytes, name));
  auto impl = std::make_unique<Impl>();
  impl->AddPiece(std::move(piece), bytes, std::move(name));
  RETURN_IF_ERROR(impl->BuildIndex());
  return std::unique_ptr<GgufFile>(new GgufFile(std::move(impl)));
}

std::span<const GgufFile::Shard> GgufFile::shards() const { return impl_->shards; }
const std::string& GgufFile::path() const { return impl_->shards[0].path; }
std::span<const std::pair<std::string, GgufValue>> GgufFile::metadata() const {
  return impl_->metadata;
}
std::span<const GgufTensor> GgufFile::tensors() const { return impl_->tensors; }

const GgufValue* GgufFile::Find(std::string_view key) const {
  const auto found = impl_->key_index.find(key);
  return found == impl_->key_index.end() ? nullptr : &impl_->metadata[found->second].second;
}

const GgufTensor* GgufFile::FindTensor(std::string_view name) const {
  const auto found = impl_->tensor_index.find(name);
  return found == impl_->tensor_index.end() ? nullptr : &impl_->tensors[found->second];
}

std::span<const std::byte> GgufFile::Data(const GgufTensor& tensor) const {
  CHECK(tensor.shard < impl_->shards.size());
  return impl_->shards[tensor.shard].bytes.subspan(tensor.file_offset, tensor.bytes);
}

absl::StatusOr<uint64_t> GgufFile::GetU64(std::string_view key) const {
  ASSIGN_OR_RETURN(const GgufValue* value, impl_->Get(key, /*array=*/false));
  if (const auto* u = std::get_if<uint64_t>(&value->scalar)) return *u;
  if (const auto* i = std::get_if<int64_t>(&value->scalar)) {
    if (*i >= 0) return static_cast<uint64_t>(*i);
    return impl_->Wrong(absl::StatusCode::kInvalidArgument, "bad_value", key,
                        absl::StrCat(*i, ", must not be negative"));
  }
  return impl_->Wrong(absl::StatusCode::kInvalidArgument, "bad_value_type", key,
                      "must be an integer");
}

absl::StatusOr<uint32_t> GgufFile::GetU32(std::string_view key) const {
  ASSIGN_OR_RETURN(const uint64_t value, GetU64(key));
  constexpr uint64_t kMax = std::numeric_limits<uint32_t>::max();
  if (value > kMax) {
    return impl_->Wrong(absl::StatusCode::kInvalidArgument, "bad_value", key,
                        absl::StrCat(value, ", allowed 0..", kMax));
  }
  return static_cast<uint32_t>(value);
}

absl::StatusOr<float> GgufFile::GetF32(std::string_view key) const {
  ASSIGN_OR_RETURN(const GgufValue* value, impl_->Get(key, /*array=*/false));
  if (const auto* d = std::get_if<double>(&value->scalar)) return static_cast<float>(*d);
  return impl_->Wrong(absl::StatusCode::kInvalidArgument, "bad_value_type", key,
                      "must be a floating point number");
}

absl::StatusOr<bool> GgufFile::GetBool(std::string_view key) const {
  ASSIGN_OR_RETURN(const GgufValue* value, impl_->Get(key, /*array=*/false));
  if (const auto* b = std::get_if<bool>(&value->scalar)) return *b;
  return impl_->Wrong(absl::StatusCode::kInvalidArgument, "bad_value_type", key, "must be a bool");
}

absl::StatusOr<std::string_view> GgufFile::GetString(std::string_view key) const {
  ASSIGN_OR_RETURN(const GgufValue* value, impl_->Get(key, /*array=*/false));
  if (const auto* s = std::get_if<std::string_view>(&value->scalar)) return *s;
  return impl_->Wrong(absl::StatusCode::kInvalidArgument, "bad_value_type", key,
                      "must be a string");
}

absl::StatusOr<std::vector<int64_t>> GgufFile::GetIntArray(std::string_view key) const {
  ASSIGN_OR_RETURN(const GgufValue* value, impl_->Get(key, /*array=*/true));
  const auto wrong = [&](std::string_view what) {
    return impl_->Wrong(absl::StatusCode::kInvalidArgument, "bad_value_type", key, what);
  };
  if (value->element_type == GgufValueType::kString) return wrong("must be an array of integers");
  std::vector<int64_t> out(value->array_size);
  switch (value->element_type) {
    case GgufValueType::kU8:
      Widen<uint8_t>(value->array_data, &out);
      break;
    case GgufValueType::kI8:
      Widen<int8_t>(value->array_data, &out);
      break;
    case GgufValueType::kU16:
      Widen<uint16_t>(value->array_data, &out);
      break;
    case GgufValueType::kI16:
      Widen<int16_t>(value->array_data, &out);
      break;
    case GgufValueType::kU32:
      Widen<uint32_t>(value->array_data, &out);
      break;
    case GgufValueType::kI32:
      Widen<int32_t>(value->array_data, &out);
      break;
    case GgufValueType::kI64:
      Widen<int64_t>(value->array_data, &out);
      break;
    case GgufValueType::kU64:
      Widen<uint64_t>(value->array_data, &out);
      for (int64_t element : out) {
        if (element < 0) return wrong("an element is above 2^63-1");
      }
      break;
    case GgufValueType::kBool:
      Widen<uint8_t>(value->array_data, &out);
      for (int64_t& element : out) element = element != 0;
      break;
    default:
      return wrong("must be an array of integers");
  }
  return out;
}

absl::StatusOr<std::vector<float>> GgufFile::GetFloatArray(std::string_view key) const {
  ASSIGN_OR_RETURN(const GgufValue* value, impl_->Get(key, /*array=*/true));
  if (value->element_type != GgufValueType::kF32) {
    return impl_->Wrong(absl::StatusCode::kInvalidArgument, "bad_value_type", key,
                        "must be an array of f32");
  }
  std::vector<float> out(value->array_size);
  if (!out.empty()) std::memcpy(out.data(), value->array_data.data(), value->array_data.size());
  return out;
}

absl::StatusOr<std::span<const std::string_view>> GgufFile::GetStringArray(
    std::string_view key) const {
  ASSIGN_OR_RETURN(const GgufValue* value, impl_->Get(key, /*array=*/true));
  if (value->element_type != GgufValueType::kString) {
    return impl_->Wrong(absl::StatusCode::kInvalidArgument, "bad_value_type", key,
                        "must be an array of strings");
  }
  return std::span<const std::string_view>(value->array_strings);
}

}  // namespace packtrain

#include "common/weights/gguf_parser.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>
#include <numeric>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/base/status_macros.h"

namespace packtrain {
namespace {

static_assert(std::endian::native == std::endian::little, "fields are copied as stored");

constexpr uint64_t kCountMax = uint64_t{1} << 20;  // of metadata entries, of tensors
constexpr uint64_t kStringBytesMax = uint64_t{1} << 30;
constexpr uint64_t kKeyBytesMax = 65535;
constexpr uint64_t kNameBytesMax = 63;
constexpr uint64_t kAlignmentMax = uint64_t{1} << 20;
constexpr uint64_t kDimMax = std::numeric_limits<int64_t>::max();
constexpr uint64_t kDefaultAlignment = 32;
// Everything before the data section. The largest vocabularies need about 20 MiB; the bound keeps
// a file of hundreds of gigabytes from turning into as many string views.
constexpr uint64_t kHeaderBytesMax = uint64_t{512} << 20;

constexpr uint64_t kEntryBytesMin = 8 + 4 + 1;           // key length, value type, one byte
constexpr uint64_t kTensorInfoBytesMin = 8 + 4 + 4 + 8;  // name length, n_dims, type, offset

// Bytes of one value; 0 for strings and arrays.
constexpr uint64_t kScalarBytes[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
constexpr uint32_t kValueTypes = std::size(kScalarBytes);

template <typename T>
T Load(const std::byte* at) {
  T value;
  std::memcpy(&value, at, sizeof(T));
  return value;
}

GgufValue::Scalar LoadScalar(GgufValueType type, const std::byte* at) {
  switch (type) {
    case GgufValueType::kU8:
      return uint64_t{Load<uint8_t>(at)};
    case GgufValueType::kI8:
      return int64_t{Load<int8_t>(at)};
    case GgufValueType::kU16:
      return uint64_t{Load<uint16_t>(at)};
    case GgufValueType::kI16:
      return int64_t{Load<int16_t>(at)};
    case GgufValueType::kU32:
      return uint64_t{Load<uint32_t>(at)};
    case GgufValueType::kI32:
      return int64_t{Load<int32_t>(at)};
    case GgufValueType::kU64:
      return Load<uint64_t>(at);
    case GgufValueType::kI64:
      return Load<int64_t>(at);
    case GgufValueType::kF32:
      return double{Load<float>(at)};
    case GgufValueType::kF64:
      return Load<double>(at);
    default:
      return Load<uint8_t>(at) != 0;  // kBool: any non-zero byte is true
  }
}

class Parser {
 public:
  Parser(std::span<const std::byte> bytes, std::string_view path)
      : bytes_(bytes),
        header_size_(std::min<uint64_t>(bytes.size(), kHeaderBytesMax)),
        path_(path) {}

  absl::StatusOr<GgufPiece> Run() {
    RETURN_IF_ERROR(ReadHeader());
    RETURN_IF_ERROR(ReadMetadata());
    RETURN_IF_ERROR(FindAlignment());
    RETURN_IF_ERROR(ReadTensorInfos());
    RETURN_IF_ERROR(PlaceTensors());
    return std::move(piece_);
  }

 private:
  uint64_t remaining() const { return header_size_ - position_; }

  absl::Status Bad(std::string_view kind, std::string_view field, std::string_view what) const {
    return GgufError(kind, path_, field, what);
  }
  absl::Status Truncated(std::string_view field, uint64_t needed) const {
    if (header_size_ < bytes_.size()) {
      return Bad("count_limit", field,
                 absl::StrCat("metadata and tensor table may take ", kHeaderBytesMax, " bytes"));
    }
    return Bad("truncated", field,
               absl::StrCat("needs ", needed, " bytes at offset ", position_, ", the file has ",
                            remaining(), " left (incomplete download?)"));
  }

  template <typename T>
  absl::StatusOr<T> Read(std::string_view field) {
    if (sizeof(T) > remaining()) return Truncated(field, sizeof(T));
    const T value = Load<T>(&bytes_[position_]);
    position_ += sizeof(T);
    return value;
  }

  absl::StatusOr<std::string_view> ReadString(std::string_view field) {
    ASSIGN_OR_RETURN(const uint64_t size, Read<uint64_t>(field));
    if (size > std::min(remaining(), kStringBytesMax)) {
      return Bad("string_length", field,
                 absl::StrCat(size, " bytes announced, allowed ",
                              std::min(remaining(), kStringBytesMax), " (what the file has left)"));
    }
    const auto* text = reinterpret_cast<const char*>(bytes_.data() + position_);
    position_ += size;
    return std::string_view(text, size);
  }

  absl::Status CheckCount(std::string_view field, uint64_t count, uint64_t bytes_min) const {
    if (count > kCountMax) {
      return Bad("count_limit", field, absl::StrCat(count, ", allowed 0..", kCountMax));
    }
    if (count > remaining() / bytes_min) return Truncated(field, count * bytes_min);
    return absl::OkStatus();
  }

  absl::Status ReadHeader() {
    if (remaining() < 4 || std::memcmp(bytes_.data(), "GGUF", 4) != 0) {
      const auto* text = reinterpret_cast<const char*>(bytes_.data());
      const std::string_view magic(text, std::min<uint64_t>(4, remaining()));
      return Bad("bad_magic", "magic",
                 absl::StrCat("\"", Printable(magic), "\", must be \"GGUF\""));
    }
    position_ = 4;
    ASSIGN_OR_RETURN(piece_.version, Read<uint32_t>("version"));
    if (piece_.version != 0 && (piece_.version & 0xffff) == 0) {
      return Bad("wrong_endianness", "version",
                 absl::StrCat("0x", absl::Hex(piece_.version),
                              ": a big-endian file; only little-endian files can be read"));
    }
    if (piece_.version != 2 && piece_.version != 3) {
      return Bad("bad_version", "version", absl::StrCat(piece_.version, ", allowed 2 and 3"));
    }
    ASSIGN_OR_RETURN(num_tensors_, Read<uint64_t>("tensor count"));
    ASSIGN_OR_RETURN(num_entries_, Read<uint64_t>("metadata count"));
    RETURN_IF_ERROR(CheckCount("metadata count", num_entries_, kEntryBytesMin));
    return CheckCount("tensor count", num_tensors_, kTensorInfoBytesMin);
  }

  absl::Status ReadMetadata() {
    absl::flat_hash_set<std::string_view> seen;
    for (uint64_t i = 0; i < num_entries_; ++i) {
      ASSIGN_OR_RETURN(const std::string_view key, ReadString("metadata key"));
      const std::string field = absl::StrCat("key ", Printable(key));
      if (key.empty() || key.size() > kKeyBytesMax || key.find('\0') != key.npos) {
        return Bad("bad_key", field,
                   absl::StrCat(key.size(), " bytes, allowed 1..", kKeyBytesMax, " without NUL"));
      }
      if (!seen.insert(key).second) return Bad("duplicate_key", field, "stands twice");
      ASSIGN_OR_RETURN(GgufValue value, ReadValue(field));
      piece_.metadata.emplace_back(key, std::move(value));
    }
    return absl::OkStatus();
  }

  absl::StatusOr<GgufValueType> ReadValueType(std::string_view field) {
    ASSIGN_OR_RETURN(const uint32_t id, Read<uint32_t>(field));
    if (id >= kValueTypes) {
      return Bad("bad_value_type", field, absl::StrCat("type ", id, ", allowed 0..12"));
    }
    return static_cast<GgufValueType>(id);
  }

  absl::StatusOr<GgufValue> ReadValue(std::string_view field) {
    GgufValue value;
    ASSIGN_OR_RETURN(value.type, ReadValueType(field));
    if (value.type == GgufValueType::kArray) {
      RETURN_IF_ERROR(ReadArray(field, &value));
    } else if (value.type == GgufValueType::kString) {
      ASSIGN_OR_RETURN(value.scalar, ReadString(field));
    } else {
      const uint64_t size = kScalarBytes[static_cast<uint32_t>(value.type)];
      if (size > remaining()) return Truncated(field, size);
      value.scalar = LoadScalar(value.type, &bytes_[position_]);
      position_ += size;
    }
    return value;
  }

  absl::Status ReadArray(std::string_view field, GgufValue* value) {
    ASSIGN_OR_RETURN(value->element_type, ReadValueType(field));
    if (value->element_type == GgufValueType::kArray) {
      return Bad("nested_array", field, "an array of arrays, which no model uses");
    }
    ASSIGN_OR_RETURN(const uint64_t count, Read<uint64_t>(field));
    const bool strings = value->element_type == GgufValueType::kString;
    const uint64_t element_bytes =
        strings ? sizeof(uint64_t) : kScalarBytes[static_cast<uint32_t>(value->element_type)];
    if (count > remaining() / element_bytes) {
      return Bad("array_length", field,
                 absl::StrCat(count, " elements announced, the file has room for ",
                              remaining() / element_bytes));
    }
    value->array_size = count;
    if (!strings) {
      value->array_data = bytes_.subspan(position_, count * element_bytes);
      position_ += count * element_bytes;
      return absl::OkStatus();
    }
    value->array_strings.reserve(count);
    for (uint64_t i = 0; i < count; ++i) {
      ASSIGN_OR_RETURN(const std::string_view element, ReadString(field));
      value->array_strings.push_back(element);
    }
    return absl::OkStatus();
  }

  absl::Status FindAlignment() {
    constexpr std::string_view kKey = "general.alignment";
    piece_.alignment = kDefaultAlignment;
    const auto found = std::find_if(piece_.metadata.begin(), piece_.metadata.end(),
                                    [&](const auto& entry) { return entry.first == kKey; });
    if (found == piece_.metadata.end()) return absl::OkStatus();
    if (found->second.type != GgufValueType::kU32) {
      return Bad("bad_alignment", kKey, "must be of type u32");
    }
    piece_.alignment = std::get<uint64_t>(found->second.scalar);
    if (!std::has_single_bit(piece_.alignment) || piece_.alignment > kAlignmentMax) {
      return Bad("bad_alignment", kKey,
                 absl::StrCat(piece_.alignment, ", allowed powers of two up to ", kAlignmentMax));
    }
    return absl::OkStatus();
  }

  absl::Status ReadTensorInfos() {
    absl::flat_hash_set<std::string_view> seen;
    for (uint64_t i = 0; i < num_tensors_; ++i) {
      ASSIGN_OR_RETURN(const std::string_view name, ReadString("tensor name"));
      const std::string field = absl::StrCat("tensor ", Printable(name));
      if (name.empty() || name.size() > kNameBytesMax || name.find('\0') != name.npos) {
        return Bad("bad_name", field,
                   absl::StrCat(name.size(), " bytes, allowed 1..", kNameBytesMax, " without NUL"));
      }
      if (!seen.insert(name).second) return Bad("duplicate_tensor", field, "stands twice");
      GgufTensor tensor;
      tensor.name = name;
      RETURN_IF_ERROR(ReadDims(field, &tensor));
      RETURN_IF_ERROR(ReadType(field, &tensor));
      ASSIGN_OR_RETURN(tensor.offset, Read<uint64_t>(field));
      piece_.tensors.push_back(std::move(tensor));
    }
    return absl::OkStatus();
  }

  absl::Status ReadDims(std::string_view field, GgufTensor* tensor) {
    ASSIGN_OR_RETURN(const uint32_t num_dims, Read<uint32_t>(field));
    if (num_dims < 1 || num_dims > 4) {
      return Bad("bad_ndims", field, absl::StrCat(num_dims, " dimensions, allowed 1..4"));
    }
    tensor->dims.reserve(num_dims);
    uint64_t elements = 1;
    for (uint32_t i = 0; i < num_dims; ++i) {
      ASSIGN_OR_RETURN(const uint64_t dim, Read<uint64_t>(field));
      if (dim < 1 || dim > kDimMax) {
        return Bad("bad_dim", field,
                   absl::StrCat("dimension ", i, " is ", dim, ", allowed 1..", kDimMax));
      }
      if (elements > kDimMax / dim) {
        return Bad("element_overflow", field,
                   absl::StrCat(elements, " x ", dim, " elements, allowed ", kDimMax));
      }
      elements *= dim;
      tensor->dims.push_back(dim);
    }
    return absl::OkStatus();
  }

  absl::Status ReadType(std::string_view field, GgufTensor* tensor) {
    ASSIGN_OR_RETURN(const uint32_t id, Read<uint32_t>(field));
    const TypeTraits* traits = FindType(id);
    if (traits == nullptr) {
      const char* hint = id < 43                ? " (removed from the format)"
                         : id >= 64 && id <= 66 ? " (IQ1_XS, IQ1_XXS or IQ1_XXXS of a fork)"
                                                : "";
      return Bad("bad_tensor_type", field,
                 absl::StrCat("type id ", id, hint, ", known are the types F32 (0) to Q2_0 (42)"));
    }
    tensor->type = traits->type;
    if (tensor->dims[0] % traits->block_weights != 0) {
      return Bad("block_mismatch", field,
                 absl::StrFormat("rows of %d weights, %s needs a multiple of %d", tensor->dims[0],
                                 traits->name, traits->block_weights));
    }
    const uint64_t blocks = tensor->elements() / traits->block_weights;
    if (blocks > std::numeric_limits<uint64_t>::max() / traits->block_bytes) {
      return Bad("size_overflow", field,
                 absl::StrCat(blocks, " blocks of ", traits->block_bytes, " bytes, allowed 2^64"));
    }
    tensor->bytes = blocks * traits->block_bytes;
    return absl::OkStatus();
  }

  // Checks every tensor against the data section, then all against each other.
  absl::Status PlaceTensors() {
    const uint64_t mask = piece_.alignment - 1;
    piece_.data_offset = piece_.tensors.empty() ? position_ : (position_ + mask) & ~mask;
    const uint64_t section_bytes =
        bytes_.size() > piece_.data_offset ? bytes_.size() - piece_.data_offset : 0;
    for (GgufTensor& tensor : piece_.tensors) {
      const std::string field = absl::StrCat("tensor ", Printable(tensor.name));
      if ((tensor.offset & mask) != 0) {
        return Bad(
            "misaligned_offset", field,
            absl::StrCat("offset ", tensor.offset, ", must be a multiple of ", piece_.alignment));
      }
      if (tensor.offset > section_bytes || tensor.bytes > section_bytes - tensor.offset) {
        return Bad(
            "offset_range", field,
            absl::StrCat(tensor.bytes, " bytes at offset ", tensor.offset,
                         ", the data section has ", section_bytes, " (incomplete download?)"));
      }
      tensor.file_offset = piece_.data_offset + tensor.offset;
    }
    return CheckOverlap();
  }

  absl::Status CheckOverlap() const {
    std::vector<const GgufTensor*> order;
    order.reserve(piece_.tensors.size());
    for (const GgufTensor& tensor : piece_.tensors) order.push_back(&tensor);
    std::sort(order.begin(), order.end(),
              [](const GgufTensor* a, const GgufTensor* b) { return a->offset < b->offset; });
    for (size_t i = 1; i < order.size(); ++i) {
      const GgufTensor& before = *order[i - 1];
      if (order[i]->offset < before.offset + before.bytes) {
        return Bad(
            "overlap", absl::StrCat("tensor ", Printable(order[i]->name)),
            absl::StrCat("offset ", order[i]->offset, " lies inside tensor ",
                         Printable(before.name), ", which ends at ", before.offset + before.bytes));
      }
    }
    return absl::OkStatus();
  }

  const std::span<const std::byte> bytes_;
  const uint64_t header_size_;
  const std::string_view path_;
  uint64_t position_ = 0;
  uint64_t num_tensors_ = 0;
  uint64_t num_entries_ = 0;
  GgufPiece piece_;
};

}  // namespace

absl::Status GgufError(std::string_view kind, std::string_view path, std::string_view field,
                       std::string_view what) {
  return absl::DataLossError(absl::StrFormat("[%s] %s: field '%s': %s", kind, path, field, what));
}

std::string Printable(std::string_view text) {
  constexpr size_t kShown = 80;
  std::string shown = absl::CHexEscape(std::string(text.substr(0, kShown)));
  if (text.size() > kShown) shown += "...";
  return shown;
}

absl::StatusOr<GgufPiece> ParseGgufPiece(std::span<const std::byte> bytes, std::string_view path) {
  return Parser(bytes, path).Run();
}

}  // namespace packtrain

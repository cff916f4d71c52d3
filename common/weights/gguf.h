#pragma once

// Reader of GGUF files (versions 2 and 3, single or split), treating every byte as hostile.
// Metadata and tensor table are parsed into memory; tensor bytes stay in the mapped files.
// Immutable after Open, so any thread may read.

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "absl/status/statusor.h"
#include "common/quant/type.h"

namespace packtrain {

// Type ids as stored in the file.
enum class GgufValueType : uint32_t {
  kU8 = 0, kI8 = 1, kU16 = 2, kI16 = 3, kU32 = 4, kI32 = 5, kF32 = 6, kBool = 7, kString = 8,
  kArray = 9, kU64 = 10, kI64 = 11, kF64 = 12,
};

// One metadata value. Integers are widened; `type` keeps what the file said. Strings are bytes
// that borrow from the mapping.
struct GgufValue {
  using Scalar = std::variant<uint64_t, int64_t, double, bool, std::string_view>;
  GgufValueType type = GgufValueType::kU8;
  GgufValueType element_type = GgufValueType::kU8;  // of an array
  Scalar scalar;                                    // unless an array
  uint64_t array_size = 0;
  std::span<const std::byte> array_data;            // packed elements as in the file (not strings)
  std::vector<std::string_view> array_strings;      // of a string array
};

struct GgufTensor {
  std::string name;
  TensorType type = TensorType::kF32;
  std::vector<uint64_t> dims;   // as stored: dims[0] is the row length
  uint64_t offset = 0;          // from the start of its file's data section
  uint64_t file_offset = 0;     // from the start of its file
  uint64_t bytes = 0;
  uint32_t shard = 0;           // index into GgufFile::shards()

  uint64_t dim(size_t i) const { return i < dims.size() ? dims[i] : 1; }
  uint64_t elements() const;
};

class GgufFile {
 public:
  struct Shard {
    std::string path;
    uint32_t version = 0;
    uint64_t alignment = 0;
    uint64_t data_offset = 0;  // file offset of the data section
    std::span<const std::byte> bytes;  // the whole mapped file
  };

  // Opens `path` and, if it is the first piece of a split set, all others.
  // Errors: NOT_FOUND (no such file), DATA_LOSS (bad content); the message names file, field,
  // value and limit, and begins with the kind of error in brackets: "[bad_magic] x.gguf: ...".
  static absl::StatusOr<std::unique_ptr<GgufFile>> Open(const std::string& path);

  // Parses bytes that the caller keeps alive, as one file named `name` (for the fuzzer and tests).
  static absl::StatusOr<std::unique_ptr<GgufFile>> Parse(std::span<const std::byte> bytes,
                                                         std::string name);
  ~GgufFile();

  std::span<const Shard> shards() const;
  const std::string& path() const;                    // of the first piece
  std::span<const std::pair<std::string, GgufValue>> metadata() const;  // in file order
  const GgufValue* Find(std::string_view key) const;  // nullptr if absent
  std::span<const GgufTensor> tensors() const;        // in file order, shard by shard
  const GgufTensor* FindTensor(std::string_view name) const;

  // The mapped bytes of a tensor of this file.
  std::span<const std::byte> Data(const GgufTensor& tensor) const;

  // Typed access. NOT_FOUND if the key is absent, INVALID_ARGUMENT if type or range is wrong; both
  // name key and file. Integer getters accept every integer type whose value fits.
  absl::StatusOr<uint32_t> GetU32(std::string_view key) const;
  absl::StatusOr<uint64_t> GetU64(std::string_view key) const;
  absl::StatusOr<float> GetF32(std::string_view key) const;
  absl::StatusOr<bool> GetBool(std::string_view key) const;
  absl::StatusOr<std::string_view> GetString(std::string_view key) const;
  // Arrays of integers or bools, widened; of floats; of strings.
  absl::StatusOr<std::vector<int64_t>> GetIntArray(std::string_view key) const;
  absl::StatusOr<std::vector<float>> GetFloatArray(std::string_view key) const;
  absl::StatusOr<std::span<const std::string_view>> GetStringArray(std::string_view key) const;

 private:
  struct Impl;
  explicit GgufFile(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace packtrain

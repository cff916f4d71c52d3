#pragma once

// Writes small GGUF files (version 3) for tests: keys and tensors in the order they are added,
// tensors packed at the alignment. Not for hostile files; those are in tests/golden/gguf.

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "common/quant/type.h"

namespace packtrain {

class GgufWriter {
 public:
  void AddU32(std::string_view key, uint32_t value);
  void AddI32(std::string_view key, int32_t value);
  void AddU64(std::string_view key, uint64_t value);
  void AddF32(std::string_view key, float value);
  void AddBool(std::string_view key, bool value);
  void AddString(std::string_view key, std::string_view value);
  void AddI32Array(std::string_view key, const std::vector<int32_t>& values);
  void AddU32Array(std::string_view key, const std::vector<uint32_t>& values);
  void AddF32Array(std::string_view key, const std::vector<float>& values);
  void AddBoolArray(std::string_view key, const std::vector<bool>& values);
  void AddStringArray(std::string_view key, const std::vector<std::string>& values);

  // dims[0] is the row length. CHECKs that `bytes` is what type and dims need.
  void AddTensor(std::string_view name, TensorType type, std::vector<uint64_t> dims,
                 std::string bytes);
  // The same of type F32.
  void AddF32Tensor(std::string_view name, std::vector<uint64_t> dims,
                    std::span<const float> values);

  // The whole file.
  std::string Finish() const;
  // Finish, written to `path`; CHECKs that this works.
  void WriteTo(const std::string& path) const;

 private:
  struct Tensor {
    std::string name;
    TensorType type;
    std::vector<uint64_t> dims;
    std::string bytes;
  };

  uint64_t num_entries_ = 0;
  std::string entries_;
  std::vector<Tensor> tensors_;
};

}  // namespace packtrain

#pragma once

// Reads .npy files: version 1.0, little endian, C order.

#include <cstdint>
#include <string>
#include <vector>

namespace packtrain {

template <typename T>
struct NpyArray {
  std::vector<size_t> shape;
  std::vector<T> values;

  const T* row(size_t i) const { return values.data() + i * (values.size() / shape[0]); }
};

// CHECKs that the file is there and holds this type.
NpyArray<float> ReadNpyF32(const std::string& path);
NpyArray<uint16_t> ReadNpyU16(const std::string& path);

}  // namespace packtrain

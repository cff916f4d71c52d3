#include "tests/support/npy.h"

#include <cstring>
#include <string_view>

#include "common/base/check.h"
#include "tests/support/test_files.h"

namespace packtrain {
namespace {

constexpr size_t kMagicBytes = 10;  // magic, version, header length

template <typename T>
NpyArray<T> Read(const std::string& path, std::string_view type) {
  const std::string file = ReadFileOrDie(path);
  CHECK_MSG(file.size() > kMagicBytes && file.compare(1, 5, "NUMPY") == 0, path);
  uint16_t header_bytes = 0;
  std::memcpy(&header_bytes, file.data() + 8, 2);
  const std::string header = file.substr(kMagicBytes, header_bytes);
  CHECK_MSG(header.find("'" + std::string(type) + "'") != std::string::npos, path);
  CHECK_MSG(header.find("'fortran_order': False") != std::string::npos, path);
  NpyArray<T> array;
  size_t count = 1;
  for (size_t i = header.find('(') + 1; header[i] != ')';) {
    if (header[i] == ',' || header[i] == ' ') {
      ++i;
      continue;
    }
    size_t digits = 0;
    array.shape.push_back(std::stoul(header.substr(i), &digits));
    count *= array.shape.back();
    i += digits;
  }
  array.values.resize(count);
  const size_t data = kMagicBytes + header_bytes;
  CHECK_MSG(file.size() == data + count * sizeof(T), path);
  std::memcpy(array.values.data(), file.data() + data, count * sizeof(T));
  return array;
}

}  // namespace

NpyArray<float> ReadNpyF32(const std::string& path) { return Read<float>(path, "<f4"); }
NpyArray<uint16_t> ReadNpyU16(const std::string& path) { return Read<uint16_t>(path, "<u2"); }

}  // namespace packtrain

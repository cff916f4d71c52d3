#include "tests/support/quant_golden.h"

#include <cstring>
#include <fstream>
#include <iterator>

#include "common/base/check.h"
#include "common/quant/codec.h"

namespace packtrain::testing {
namespace {

constexpr size_t kHeaderBytes = 40;
constexpr size_t kEntryBytes = 56;

template <typename T>
T Load(const std::string& data, size_t offset) {
  T value;
  CHECK(offset + sizeof value <= data.size());
  std::memcpy(&value, data.data() + offset, sizeof value);
  return value;
}

// The section `name`, empty if the file has none.
template <typename T>
std::vector<T> Section(const std::string& data, const std::string& name) {
  const auto count = Load<uint32_t>(data, 8);
  for (size_t i = 0; i < count; ++i) {
    const size_t entry = kHeaderBytes + kEntryBytes * i;
    if (name != data.substr(entry, 16).c_str()) continue;
    const auto offset = Load<uint64_t>(data, entry + 24), bytes = Load<uint64_t>(data, entry + 32);
    CHECK(bytes % sizeof(T) == 0 && offset + bytes <= data.size());
    std::vector<T> values(bytes / sizeof(T));
    std::memcpy(values.data(), data.data() + offset, bytes);
    return values;
  }
  return {};
}

}  // namespace

QuantGolden ReadQuantGolden(const std::string& kind, TensorType type) {
  const std::string path = std::string(PACKTRAIN_SOURCE_DIR) + "/tests/golden/quants/" + kind +
                           "_" + std::string(TypeName(type)) + ".gqv";
  std::ifstream file(path, std::ios::binary);
  CHECK_MSG(file.good(), path);
  const std::string data{std::istreambuf_iterator<char>(file), {}};
  CHECK_MSG(data.substr(0, 8) == "GGQV0001", path);
  CHECK_MSG(Load<uint32_t>(data, 12) == static_cast<uint32_t>(type), path);
  QuantGolden golden;
  golden.type = type;
  golden.rows = Load<uint32_t>(data, 28);
  golden.columns = Load<uint32_t>(data, 32);
  golden.source = Section<float>(data, "src");
  golden.blocks = Section<uint8_t>(data, "blocks");
  golden.decoded_hash = Section<uint64_t>(data, "deq_hash");
  golden.wide_blocks = Section<uint8_t>(data, "blocks_wide");
  golden.wide_decoded_hash = Section<uint64_t>(data, "deq_wide_hash");
  golden.activation = Section<float>(data, "act");
  golden.activation_blocks = Section<uint8_t>(data, "act_q");
  golden.dot_exact = Section<double>(data, "dot_exact");
  golden.dot_quantized = Section<double>(data, "dot_actq");
  golden.abs_sum = Section<double>(data, "abs_sum");
  return golden;
}

uint64_t HashFloats(const float* values, size_t count) {
  uint64_t hash = 0xcbf29ce484222325;
  const auto* bytes = reinterpret_cast<const unsigned char*>(values);
  for (size_t i = 0; i < count * sizeof(float); ++i) hash = (hash ^ bytes[i]) * 0x100000001b3;
  return hash;
}

std::vector<TensorType> GoldenTypes() {
  std::vector<TensorType> types;
  for (const TypeTraits& traits : AllTypes()) {
    if (CanDecode(traits.type) && traits.type != TensorType::kF64) types.push_back(traits.type);
  }
  return types;
}

}  // namespace packtrain::testing

// The reference codecs against golden files made with the format's own reference implementation:
// every type decodes bit for bit, also blocks that no quantiser would write.

#include "common/quant/codec.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <iterator>

#include "tests/support/quant_golden.h"

namespace packtrain {
namespace {

using testing::GoldenTypes;
using testing::HashFloats;
using testing::QuantGolden;
using testing::ReadQuantGolden;

std::string TypeParamName(const ::testing::TestParamInfo<TensorType>& param) {
  return std::string(TypeName(param.param));
}

class QuantCodecTest : public ::testing::TestWithParam<TensorType> {};
INSTANTIATE_TEST_SUITE_P(AllTypes, QuantCodecTest, ::testing::ValuesIn(GoldenTypes()),
                         TypeParamName);

void ExpectRowsMatch(const QuantGolden& golden, const std::vector<uint8_t>& blocks,
                     const std::vector<uint64_t>& hashes, const char* group) {
  ASSERT_FALSE(hashes.empty());
  const size_t row_bytes = RowBytes(golden.type, golden.columns);
  ASSERT_EQ(blocks.size(), hashes.size() * row_bytes);
  std::vector<float> row(golden.columns);
  for (size_t r = 0; r < hashes.size(); ++r) {
    Decode(golden.type, blocks.data() + r * row_bytes, golden.columns, row.data());
    EXPECT_EQ(HashFloats(row.data(), row.size()), hashes[r]) << group << " row " << r;
  }
}

TEST_P(QuantCodecTest, QuantisedRowsDecodeBitForBit) {
  const QuantGolden golden = ReadQuantGolden("quantised", GetParam());
  ExpectRowsMatch(golden, golden.blocks, golden.decoded_hash, "quantised");
}

TEST_P(QuantCodecTest, RandomBlocksWithAnyFiniteScaleDecodeBitForBit) {
  const QuantGolden golden = ReadQuantGolden("random", GetParam());
  ExpectRowsMatch(golden, golden.blocks, golden.decoded_hash, "random");
  ExpectRowsMatch(golden, golden.wide_blocks, golden.wide_decoded_hash, "random, wide scales");
}

TEST_P(QuantCodecTest, DecodedRowsGiveTheGoldenDotProducts) {
  for (const char* kind : {"quantised", "random"}) {
    const QuantGolden golden = ReadQuantGolden(kind, GetParam());
    std::vector<float> row(golden.columns);
    for (size_t r = 0; r < golden.dot_exact.size(); ++r) {
      Decode(golden.type, golden.blocks.data() + r * RowBytes(golden.type, golden.columns),
             golden.columns, row.data());
      double dot = 0;
      for (size_t i = 0; i < row.size(); ++i) dot += double{row[i]} * golden.activation[i];
      EXPECT_LE(std::fabs(dot - golden.dot_exact[r]), 1e-14 * golden.abs_sum[r]) << kind << r;
    }
  }
}

constexpr TensorType kEncodable[] = {
    TensorType::kF32,  TensorType::kF16,  TensorType::kQ4_1, TensorType::kQ8_0,
    TensorType::kQ8_1, TensorType::kQ4_K, TensorType::kQ8_K, TensorType::kBF16,
};

class QuantEncodeTest : public ::testing::TestWithParam<TensorType> {};
INSTANTIATE_TEST_SUITE_P(EncodableTypes, QuantEncodeTest, ::testing::ValuesIn(kEncodable),
                         TypeParamName);

TEST_P(QuantEncodeTest, EncodesTheGoldenBytes) {
  const QuantGolden golden = ReadQuantGolden("quantised", GetParam());
  ASSERT_EQ(golden.source.size(), golden.rows * golden.columns);
  const size_t row_bytes = RowBytes(golden.type, golden.columns);
  std::vector<uint8_t> row(row_bytes);
  for (size_t r = 0; r < golden.rows; ++r) {
    Encode(golden.type, golden.source.data() + r * golden.columns, golden.columns, row.data());
    EXPECT_EQ(std::memcmp(row.data(), golden.blocks.data() + r * row_bytes, row_bytes), 0)
        << "row " << r;
  }
}

TEST(QuantCodecSetTest, EncodersExistForTheTypesThatTheSystemWrites) {
  for (const TypeTraits& traits : AllTypes()) {
    const bool expected = std::ranges::find(kEncodable, traits.type) != std::end(kEncodable);
    EXPECT_EQ(CanEncode(traits.type), expected) << traits.name;
  }
}

TEST(QuantCodecSetTest, IntegersAreNotWeights) {
  using enum TensorType;
  for (TensorType type : {kI8, kI16, kI32, kI64}) EXPECT_FALSE(CanDecode(type));
  EXPECT_TRUE(CanDecode(kF64));
}

}  // namespace
}  // namespace packtrain

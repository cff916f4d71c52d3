// The type table: ids are those of the file format, removed ids stay unknown.

#include "common/quant/type.h"

#include <gtest/gtest.h>

namespace packtrain {
namespace {

TEST(TensorTypeTest, RemovedAndFutureIdsAreUnknown) {
  for (uint32_t id : {4u, 5u, 31u, 32u, 33u, 36u, 37u, 38u, 43u, 64u, 0xffffffffu}) {
    EXPECT_EQ(FindType(id), nullptr) << id;
  }
}

TEST(TensorTypeTest, EveryTypeIsFoundByItsId) {
  EXPECT_EQ(AllTypes().size(), 35u);
  uint32_t last = 0;
  for (const TypeTraits& traits : AllTypes()) {
    const auto id = static_cast<uint32_t>(traits.type);
    EXPECT_TRUE(id > last || id == 0) << "ordered by id";
    last = id;
    ASSERT_EQ(FindType(id), &traits);
    EXPECT_EQ(&Traits(traits.type), &traits);
  }
  EXPECT_EQ(TypeName(TensorType::kIQ2_XXS), "IQ2_XXS");
}

TEST(TensorTypeTest, RowBytesCountsWholeBlocks) {
  EXPECT_EQ(RowBytes(TensorType::kIQ2_XS, 6144), 24u * 74);
  EXPECT_EQ(RowBytes(TensorType::kMXFP4, 64), 34u);
  EXPECT_EQ(RowBytes(TensorType::kF32, 3), 12u);
  EXPECT_EQ(RowBytes(TensorType::kQ4_K, 0), 0u);
}

}  // namespace
}  // namespace packtrain

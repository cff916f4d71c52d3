// Conversions of 16-bit floats, over all 65536 patterns and around the rounding borders.

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>

#include "common/quant/codec.h"

namespace packtrain {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// The value of a finite binary16 by its definition.
double HalfValue(uint32_t half) {
  const int exponent = half >> 10 & 31;
  const int mantissa = half & 1023;
  const double magnitude =
      exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25);
  return (half & 0x8000) != 0 ? -magnitude : magnitude;
}

TEST(HalfTest, EveryPatternSurvivesTheRoundTrip) {
  for (uint32_t half = 0; half < 0x10000; ++half) {
    const float value = HalfToFloat(static_cast<uint16_t>(half));
    if ((half & 0x7c00) == 0x7c00) {
      if ((half & 0x3ff) == 0) {
        EXPECT_EQ(value, half == 0x7c00 ? kInfinity : -kInfinity);
        EXPECT_EQ(FloatToHalf(value), half);
      } else {
        EXPECT_TRUE(std::isnan(value));
        EXPECT_TRUE(std::isnan(HalfToFloat(FloatToHalf(value))));
      }
      continue;
    }
    ASSERT_EQ(value, HalfValue(half));
    ASSERT_EQ(FloatToHalf(value), half);
  }
}

TEST(HalfTest, RoundsToNearestWithTiesToEven) {
  for (uint32_t half = 0; half < 0x7bff; ++half) {
    const double low = HalfValue(half), high = HalfValue(half + 1);
    const auto middle = static_cast<float>((low + high) / 2);  // exact: 12 bits
    ASSERT_EQ(FloatToHalf(middle), half % 2 == 0 ? half : half + 1);
    ASSERT_EQ(FloatToHalf(std::nextafter(middle, 0.0f)), half);
    ASSERT_EQ(FloatToHalf(std::nextafter(middle, kInfinity)), half + 1);
    ASSERT_EQ(FloatToHalf(-middle), 0x8000 | (half % 2 == 0 ? half : half + 1));
  }
}

TEST(HalfTest, OverflowGivesInfinity) {
  EXPECT_EQ(FloatToHalf(65519.996f), 0x7bff);
  EXPECT_EQ(FloatToHalf(65520.0f), 0x7c00);
  EXPECT_EQ(FloatToHalf(-1e30f), 0xfc00);
}

TEST(BFloat16Test, RoundsToNearestEvenAndKeepsNan) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const float value = BFloat16ToFloat(static_cast<uint16_t>(bits));
    if (std::isnan(value)) {
      EXPECT_TRUE(std::isnan(BFloat16ToFloat(FloatToBFloat16(value))));
    } else {
      ASSERT_EQ(FloatToBFloat16(value), bits);
    }
  }
  EXPECT_EQ(FloatToBFloat16(std::bit_cast<float>(0x3f808000u)), 0x3f80);  // tie to even
  EXPECT_EQ(FloatToBFloat16(std::bit_cast<float>(0x3f818000u)), 0x3f82);
  EXPECT_EQ(FloatToBFloat16(std::bit_cast<float>(0x7f800001u)), 0x7fc0);  // NaN, not infinity
}

}  // namespace
}  // namespace packtrain

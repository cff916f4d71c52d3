#include "common/quant/float_types.h"

#include <bit>
#include <cmath>
#include <cstring>

#include "common/quant/bytes.h"

namespace packtrain {

float HalfToFloat(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16;
  const uint32_t exponent = half >> 10 & 31;
  const uint32_t mantissa = half & 0x3ff;
  if (exponent == 0) {
    const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
    return sign != 0 ? -magnitude : magnitude;
  }
  const uint32_t wide_exponent = exponent == 31 ? 255 : exponent + (127 - 15);
  return std::bit_cast<float>(sign | wide_exponent << 23 | mantissa << 13);
}

uint16_t FloatToHalf(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t sign = bits >> 16 & 0x8000;
  const uint32_t magnitude = bits & 0x7fffffff;
  uint32_t half;
  if (magnitude > 0x7f800000) {
    half = 0x7e00 | (magnitude >> 13 & 0x3ff);
  } else if (magnitude >= 0x477ff000) {  // rounds to 65536 or more
    half = 0x7c00;
  } else if (magnitude >= 0x38800000) {  // normal: a carry out of the mantissa raises the exponent
    const uint32_t rounded = magnitude + 0xfff + (magnitude >> 13 & 1);
    half = (rounded - (112u << 23)) >> 13;
  } else {  // subnormal: adding 0.5 makes the hardware round at bit 2^-24
    const float shifted = std::bit_cast<float>(magnitude) + 0.5f;
    half = std::bit_cast<uint32_t>(shifted) - std::bit_cast<uint32_t>(0.5f);
  }
  return static_cast<uint16_t>(sign | half);
}

float BFloat16ToFloat(uint16_t value) {
  return std::bit_cast<float>(static_cast<uint32_t>(value) << 16);
}

uint16_t FloatToBFloat16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if ((bits & 0x7fffffff) > 0x7f800000) return static_cast<uint16_t>(bits >> 16 | 64);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

void DecodeF32(const uint8_t* block, float* weights) { std::memcpy(weights, block, sizeof(float)); }
void DecodeF16(const uint8_t* block, float* weights) { *weights = LoadHalf(block); }
void DecodeBF16(const uint8_t* block, float* weights) {
  *weights = BFloat16ToFloat(LoadU16(block));
}
void DecodeF64(const uint8_t* block, float* weights) {
  double value;
  std::memcpy(&value, block, sizeof value);
  *weights = static_cast<float>(value);
}

void EncodeF32(const float* weights, uint8_t* block) { std::memcpy(block, weights, sizeof(float)); }
void EncodeF16(const float* weights, uint8_t* block) { StoreHalf(*weights, block); }
void EncodeBF16(const float* weights, uint8_t* block) {
  const uint16_t value = FloatToBFloat16(*weights);
  std::memcpy(block, &value, sizeof value);
}

}  // namespace packtrain

#pragma once

// Fields inside blocks are little-endian and unaligned (blocks of 17, 18, 66, 210 bytes follow one
// another without padding), so every read is a copy. The code assumes a little-endian machine.

#include <bit>
#include <cstdint>
#include <cstring>

#include "common/quant/codec.h"

namespace packtrain {

static_assert(std::endian::native == std::endian::little);

inline uint16_t LoadU16(const uint8_t* p) {
  uint16_t v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

inline uint32_t LoadU32(const uint8_t* p) {
  uint32_t v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

inline float LoadHalf(const uint8_t* p) { return HalfToFloat(LoadU16(p)); }

inline void StoreHalf(float value, uint8_t* p) {
  const uint16_t half = FloatToHalf(value);
  std::memcpy(p, &half, sizeof half);
}

// The low (half = 0) or high (half = 1) four bits of a byte.
inline int Nibble(uint8_t byte, int half) { return byte >> (4 * half) & 15; }

}  // namespace packtrain

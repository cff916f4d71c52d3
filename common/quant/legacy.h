#pragma once

// The 32-weight types with one f16 scale. Byte j of `qs` holds weight j in its low nibble and
// weight j + 16 in its high nibble.

#include <cstdint>

namespace packtrain {

struct BlockQ4_0 {  // w = (q - 8) d
  uint8_t d[2];
  uint8_t qs[16];
};
struct BlockQ4_1 {  // w = q d + m
  uint8_t d[2], m[2];
  uint8_t qs[16];
};
struct BlockQ5_0 {  // q has its fifth bit in `high`; w = (q - 16) d
  uint8_t d[2];
  uint8_t high[4];
  uint8_t qs[16];
};
struct BlockQ5_1 {  // w = q d + m
  uint8_t d[2], m[2];
  uint8_t high[4];
  uint8_t qs[16];
};
struct BlockQ8_0 {  // w = q d
  uint8_t d[2];
  int8_t qs[32];
};
struct BlockQ8_1 {  // as Q8_0; s = d * sum of q, for weight types with a minimum
  uint8_t d[2], s[2];
  int8_t qs[32];
};
static_assert(sizeof(BlockQ4_0) == 18 && sizeof(BlockQ4_1) == 20 && sizeof(BlockQ5_0) == 22);
static_assert(sizeof(BlockQ5_1) == 24 && sizeof(BlockQ8_0) == 34 && sizeof(BlockQ8_1) == 36);

void DecodeQ4_0(const uint8_t* block, float* weights);
void DecodeQ4_1(const uint8_t* block, float* weights);
void DecodeQ5_0(const uint8_t* block, float* weights);
void DecodeQ5_1(const uint8_t* block, float* weights);
void DecodeQ8_0(const uint8_t* block, float* weights);
void DecodeQ8_1(const uint8_t* block, float* weights);

void EncodeQ4_1(const float* weights, uint8_t* block);
void EncodeQ8_0(const float* weights, uint8_t* block);
void EncodeQ8_1(const float* weights, uint8_t* block);

}  // namespace packtrain

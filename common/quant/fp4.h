#pragma once

// The 4-bit floating point types: E2M1 values under an 8-bit scale.

#include <cstdint>

namespace packtrain {

struct BlockMXFP4 {  // 32 weights: kFp4Values[q] * 2^(e - 128); nibble order as in legacy.h
  uint8_t e;
  uint8_t qs[16];
};
// 64 weights in four sub-blocks of 16: kFp4Values[q] * (E4M3(scales[k]) / 2). Byte 8 k + j holds
// weights 16 k + j (low) and 16 k + 8 + j (high).
struct BlockNVFP4 {
  uint8_t scales[4];
  uint8_t qs[32];
};
static_assert(sizeof(BlockMXFP4) == 17 && sizeof(BlockNVFP4) == 36);

// 2^(e - 128): the scale that belongs to kFp4Values, which are twice the E2M1 values.
float MXFP4Scale(uint8_t e);
// Half the unsigned E4M3 value of the low seven bits; 0x7f gives 0.
float NVFP4Scale(uint8_t scale);

void DecodeMXFP4(const uint8_t* block, float* weights);
void DecodeNVFP4(const uint8_t* block, float* weights);

}  // namespace packtrain

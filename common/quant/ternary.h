#pragma once

// Types of one to two bits with one f16 scale per block.

#include <cstdint>

namespace packtrain {

struct BlockTQ1_0 {  // five base-3 digits per byte of qs, four per byte of qh; w = (digit - 1) d
  uint8_t qs[48];
  uint8_t qh[4];
  uint8_t d[2];
};
struct BlockTQ2_0 {  // 2-bit fields in the order of the K types; w = (q - 1) d
  uint8_t qs[64];
  uint8_t d[2];
};
struct BlockQ1_0 {  // 128 weights, one bit each: d or -d
  uint8_t d[2];
  uint8_t qs[16];
};
struct BlockQ2_0 {  // 64 weights, four neighbours per byte; w = (q - 1) d
  uint8_t d[2];
  uint8_t qs[16];
};
static_assert(sizeof(BlockTQ1_0) == 54 && sizeof(BlockTQ2_0) == 66);
static_assert(sizeof(BlockQ1_0) == 18 && sizeof(BlockQ2_0) == 18);

void DecodeTQ1_0(const uint8_t* block, float* weights);
void DecodeTQ2_0(const uint8_t* block, float* weights);
void DecodeQ1_0(const uint8_t* block, float* weights);
void DecodeQ2_0(const uint8_t* block, float* weights);

}  // namespace packtrain

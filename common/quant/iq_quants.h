#pragma once

// The codebook types (256 weights; IQ4_NL 32). Grid entries are in codebooks.h. Group c = 8
// neighbouring weights, sub-block b = 32.

#include <cstdint>

namespace packtrain {

struct BlockIQ1_S {  // qh[b]: 3 high index bits per group, scale in bits 12..14, sign of delta 15
  uint8_t d[2];
  uint8_t qs[32];
  uint8_t qh[16];
};
struct BlockIQ1_M {  // no scale field: the top nibbles of the four scale words form the f16
  uint8_t qs[32];
  uint8_t qh[16];
  uint8_t scales[8];
};
struct BlockIQ2_XXS {  // per sub-block four indices, then a word: 4 x 7 sign bits and a 4-bit scale
  uint8_t d[2];
  uint8_t qs[64];
};
struct BlockIQ2_XS {  // per group 9 index bits and 7 sign bits
  uint8_t d[2];
  uint8_t qs[64];
  uint8_t scales[8];
};
struct BlockIQ2_S {  // eight explicit signs per group
  uint8_t d[2];
  uint8_t qs[32];
  uint8_t signs[32];
  uint8_t qh[8];
  uint8_t scales[8];
};
struct BlockIQ3_XXS {  // an index per four weights; words as in IQ2_XXS
  uint8_t d[2];
  uint8_t qs[64];
  uint8_t words[32];
};
struct BlockIQ3_S {
  uint8_t d[2];
  uint8_t qs[64];
  uint8_t qh[8];
  uint8_t signs[32];
  uint8_t scales[4];
};
struct BlockIQ4_NL {  // w = d kIq4NlValues[q]; nibble order as in legacy.h
  uint8_t d[2];
  uint8_t qs[16];
};
struct BlockIQ4_XS {  // 6-bit scales biased by 32, per sub-block; nibble order as in legacy.h
  uint8_t d[2];
  uint8_t scales_high[2];
  uint8_t scales_low[4];
  uint8_t qs[128];
};
static_assert(sizeof(BlockIQ1_S) == 50 && sizeof(BlockIQ1_M) == 56 && sizeof(BlockIQ2_XXS) == 66);
static_assert(sizeof(BlockIQ2_XS) == 74 && sizeof(BlockIQ2_S) == 82 && sizeof(BlockIQ3_XXS) == 98);
static_assert(sizeof(BlockIQ3_S) == 110 && sizeof(BlockIQ4_NL) == 18 && sizeof(BlockIQ4_XS) == 136);

void DecodeIQ1_S(const uint8_t* block, float* weights);
void DecodeIQ1_M(const uint8_t* block, float* weights);
void DecodeIQ2_XXS(const uint8_t* block, float* weights);
void DecodeIQ2_XS(const uint8_t* block, float* weights);
void DecodeIQ2_S(const uint8_t* block, float* weights);
void DecodeIQ3_XXS(const uint8_t* block, float* weights);
void DecodeIQ3_S(const uint8_t* block, float* weights);
void DecodeIQ4_NL(const uint8_t* block, float* weights);
void DecodeIQ4_XS(const uint8_t* block, float* weights);

}  // namespace packtrain

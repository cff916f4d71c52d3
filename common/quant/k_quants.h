#pragma once

// The K types: 256 weights with sub-block scales that are themselves quantised.
//
// 2-bit fields: weight 128 n + 32 k + l is bits 2 k, 2 k + 1 of byte 32 n + l. 4-bit fields of Q4_K
// and Q5_K: weight 64 c + 32 h + l is nibble h of byte 32 c + l.

#include <cstdint>

namespace packtrain {

struct BlockQ2_K {  // per 16 weights a 4-bit scale (low nibble) and minimum: w = d sc q - dmin mn
  uint8_t scales[16];
  uint8_t qs[64];
  uint8_t d[2], dmin[2];
};
struct BlockQ3_K {  // a clear bit of hmask subtracts 4; sixteen 6-bit scales biased by 32
  uint8_t hmask[32];
  uint8_t qs[64];
  uint8_t scales[12];
  uint8_t d[2];
};
struct BlockQ4_K {  // per 32 weights a 6-bit scale and minimum: w = d sc q - dmin mn
  uint8_t d[2], dmin[2];
  uint8_t scales[12];
  uint8_t qs[128];
};
struct BlockQ5_K {  // as Q4_K with the fifth bit of weight w in bit w / 32 of qh[w % 32]
  uint8_t d[2], dmin[2];
  uint8_t scales[12];
  uint8_t qh[32];
  uint8_t qs[128];
};
struct BlockQ6_K {  // w = d sc (q - 32), one scale per 16 weights
  uint8_t ql[128];
  uint8_t qh[64];
  int8_t scales[16];
  uint8_t d[2];
};
struct BlockQ8_K {  // activations only; bsums[g] = sum of the 16 q of group g
  uint8_t d[4];
  int8_t qs[256];
  uint8_t bsums[32];
};
static_assert(sizeof(BlockQ2_K) == 84 && sizeof(BlockQ3_K) == 110 && sizeof(BlockQ4_K) == 144);
static_assert(sizeof(BlockQ5_K) == 176 && sizeof(BlockQ6_K) == 210 && sizeof(BlockQ8_K) == 292);

// The eight 6-bit scales and minima of Q4_K and Q5_K.
void UnpackK4Scales(const uint8_t packed[12], uint8_t scales[8], uint8_t mins[8]);
// The sixteen scales of Q3_K, bias removed.
void UnpackQ3KScales(const uint8_t packed[12], int8_t scales[16]);

void DecodeQ2_K(const uint8_t* block, float* weights);
void DecodeQ3_K(const uint8_t* block, float* weights);
void DecodeQ4_K(const uint8_t* block, float* weights);
void DecodeQ5_K(const uint8_t* block, float* weights);
void DecodeQ6_K(const uint8_t* block, float* weights);
void DecodeQ8_K(const uint8_t* block, float* weights);

void EncodeQ4_K(const float* weights, uint8_t* block);
// The weight of largest magnitude becomes -127, so the scale is negative where it is positive.
void EncodeQ8_K(const float* weights, uint8_t* block);

}  // namespace packtrain

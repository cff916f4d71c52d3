#include "common/quant/fp4.h"

#include <cmath>

#include "common/quant/bytes.h"
#include "common/quant/codebooks.h"

namespace packtrain {

float MXFP4Scale(uint8_t e) { return std::ldexp(1.0f, e - 128); }

float NVFP4Scale(uint8_t scale) {
  if (scale == 0x7f) return 0;
  const int exponent = scale >> 3 & 15;
  const int mantissa = scale & 7;
  const float value = exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -9)
                                    : std::ldexp(static_cast<float>(8 + mantissa), exponent - 10);
  return value * 0.5f;
}

void DecodeMXFP4(const uint8_t* block, float* weights) {
  const auto& b = *reinterpret_cast<const BlockMXFP4*>(block);
  const float d = MXFP4Scale(b.e);
  for (int w = 0; w < 32; ++w) {
    weights[w] = static_cast<float>(kFp4Values[Nibble(b.qs[w % 16], w / 16)]) * d;
  }
}

void DecodeNVFP4(const uint8_t* block, float* weights) {
  const auto& b = *reinterpret_cast<const BlockNVFP4*>(block);
  for (int w = 0; w < 64; ++w) {
    const int q = Nibble(b.qs[8 * (w / 16) + w % 8], w / 8 % 2);
    weights[w] = static_cast<float>(kFp4Values[q]) * NVFP4Scale(b.scales[w / 16]);
  }
}

}  // namespace packtrain

#include "common/quant/iq_quants.h"

#include "common/quant/bytes.h"
#include "common/quant/codebooks.h"

namespace packtrain {
namespace {

float WithSign(float x, uint32_t signs, int j) { return (signs >> j & 1) != 0 ? -x : x; }

// Eight weights: scale * level * sign, from eight 2-bit codes.
void DecodeGroup(uint16_t codes, uint32_t signs, float scale, float* weights) {
  for (int j = 0; j < 8; ++j) {
    const float magnitude = scale * static_cast<float>(kIq2Levels[codes >> (2 * j) & 3]);
    weights[j] = WithSign(magnitude, signs, j);
  }
}

// Four weights from four 3-bit codes; the first has sign bit `first_sign`.
void DecodeQuad(uint16_t codes, const int8_t* levels, uint32_t signs, int first_sign, float scale,
                float* weights) {
  for (int j = 0; j < 4; ++j) {
    const float magnitude = scale * static_cast<float>(levels[codes >> (3 * j) & 7]);
    weights[j] = WithSign(magnitude, signs, first_sign + j);
  }
}

// Eight weights of a ternary grid, shifted by delta.
void DecodeShiftedGroup(uint16_t codes, float delta, float scale, float* weights) {
  for (int j = 0; j < 8; ++j) {
    weights[j] = scale * (static_cast<float>(kIq1Levels[codes >> (2 * j) & 3]) + delta);
  }
}

}  // namespace

void DecodeIQ1_S(const uint8_t* block, float* weights) {
  const auto& b = *reinterpret_cast<const BlockIQ1_S*>(block);
  const float d = LoadHalf(b.d);
  for (int c = 0; c < 32; ++c) {
    const int high = LoadU16(b.qh + 2 * (c / 4));
    const int index = b.qs[c] | (high >> (3 * (c % 4)) & 7) << 8;
    const float scale = d * static_cast<float>(2 * (high >> 12 & 7) + 1);
    DecodeShiftedGroup(kIq1SCodes[index], (high & 0x8000) != 0 ? -0.125f : 0.125f, scale,
                       weights + 8 * c);
  }
}

void DecodeIQ1_M(const uint8_t* block, float* weights) {
  const auto& b = *reinterpret_cast<const BlockIQ1_M*>(block);
  int half = 0;
  for (int i = 0; i < 4; ++i) half |= LoadU16(b.scales + 2 * i) >> 12 << (4 * i);
  const float d = HalfToFloat(static_cast<uint16_t>(half));
  for (int c = 0; c < 32; ++c) {
    const int g = c / 2;
    const int s = LoadU16(b.scales + 2 * (g / 4)) >> (3 * (g % 4)) & 7;
    const int high = Nibble(b.qh[g], c % 2);
    const int index = b.qs[c] | (high & 7) << 8;
    DecodeShiftedGroup(kIq1SCodes[index], (high & 8) != 0 ? -0.125f : 0.125f,
                       d * static_cast<float>(2 * s + 1), weights + 8 * c);
  }
}

void DecodeIQ2_XXS(const uint8_t* block, float* weights) {
  const auto& b = *reinterpret_cast<const BlockIQ2_XXS*>(block);
  const float d = LoadHalf(b.d);
  for (int c = 0; c < 32; ++c) {
    const uint8_t* sub_block = b.qs + 8 * (c / 4);
    const uint32_t word = LoadU32(sub_block + 4);
    const float scale = d * (0.5f + static_cast<float>(word >> 28)) * 0.25f;
    DecodeGroup(kIq2XxsCodes[sub_block[c % 4]], EvenSigns(word >> (7 * (c % 4)) & 127), scale,
                weights + 8 * c);
  }
}

void DecodeIQ2_XS(const uint8_t* block, float* weights) {
  const auto& b = *reinterpret_cast<const BlockIQ2_XS*>(block);
  const float d = LoadHalf(b.d);
  for (int c = 0; c < 32; ++c) {
    const uint32_t q = LoadU16(b.qs + 2 * c);
    const int s = Nibble(b.scales[c / 4], c % 4 / 2);
    const float scale = d * (0.5f + static_cast<float>(s)) * 0.25f;
    DecodeGroup(kIq2XsCodes[q & 511], EvenSigns(q >> 9), scale, weights + 8 * c);
  }
}

void DecodeIQ2_S(const uint8_t* block, float* weights) {
  const auto& b = *reinterpret_cast<const BlockIQ2_S*>(block);
  const float d = LoadHalf(b.d);
  for (int c = 0; c < 32; ++c) {
    const int index = b.qs[c] | (b.qh[c / 4] >> (2 * (c % 4)) & 3) << 8;
    const int s = Nibble(b.scales[c / 4], c % 4 / 2);
    const float scale = d * (0.5f + static_cast<float>(s)) * 0.25f;
    DecodeGroup(kIq2SCodes[index], b.signs[c], scale, weights + 8 * c);
  }
}

void DecodeIQ3_XXS(const uint8_t* block, float* weights) {
  const auto& b = *reinterpret_cast<const BlockIQ3_XXS*>(block);
  const float d = LoadHalf(b.d);
  for (int q = 0; q < 64; ++q) {
    const int c = q / 2;
    const uint32_t word = LoadU32(b.words + 4 * (c / 4));
    const float scale = d * (0.5f + static_cast<float>(word >> 28)) * 0.5f;
    DecodeQuad(kIq3XxsCodes[b.qs[q]], kIq3XxsLevels, EvenSigns(word >> (7 * (c % 4)) & 127),
               4 * (q % 2), scale, weights + 4 * q);
  }
}

void DecodeIQ3_S(const uint8_t* block, float* weights) {
  const auto& b = *reinterpret_cast<const BlockIQ3_S*>(block);
  const float d = LoadHalf(b.d);
  for (int q = 0; q < 64; ++q) {
    const int index = b.qs[q] | (b.qh[q / 8] >> (q % 8) & 1) << 8;
    const int s = Nibble(b.scales[q / 16], q / 8 % 2);
    DecodeQuad(kIq3SCodes[index], kIq3SLevels, b.signs[q / 2], 4 * (q % 2),
               d * static_cast<float>(1 + 2 * s), weights + 4 * q);
  }
}

void DecodeIQ4_NL(const uint8_t* block, float* weights) {
  const auto& b = *reinterpret_cast<const BlockIQ4_NL*>(block);
  const float d = LoadHalf(b.d);
  for (int w = 0; w < 32; ++w) {
    weights[w] = d * static_cast<float>(kIq4NlValues[Nibble(b.qs[w % 16], w / 16)]);
  }
}

void DecodeIQ4_XS(const uint8_t* block, float* weights) {
  const auto& b = *reinterpret_cast<const BlockIQ4_XS*>(block);
  const float d = LoadHalf(b.d);
  for (int w = 0; w < 256; ++w) {
    const int sub_block = w / 32;
    const int high = LoadU16(b.scales_high) >> (2 * sub_block) & 3;
    const int s = Nibble(b.scales_low[sub_block / 2], sub_block % 2) | high << 4;
    const int q = Nibble(b.qs[16 * sub_block + w % 16], w % 32 / 16);
    weights[w] = d * static_cast<float>(s - 32) * static_cast<float>(kIq4NlValues[q]);
  }
}

}  // namespace packtrain

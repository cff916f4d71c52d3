#include "common/quant/ternary.h"

#include "common/quant/bytes.h"

namespace packtrain {
namespace {

// Digit n of the fraction byte / 256 in base 3.
int Digit(uint8_t byte, int n) {
  constexpr uint8_t kPowers[5] = {1, 3, 9, 27, 81};
  const auto shifted = static_cast<uint8_t>(byte * kPowers[n]);
  return shifted * 3 >> 8;
}

}  // namespace

void DecodeTQ1_0(const uint8_t* block, float* weights) {
  const auto& b = *reinterpret_cast<const BlockTQ1_0*>(block);
  const float d = LoadHalf(b.d);
  const auto value = [d](int digit) { return static_cast<float>(digit - 1) * d; };
  for (int i = 0; i < 160; ++i) weights[i] = value(Digit(b.qs[i % 32], i / 32));
  for (int i = 0; i < 80; ++i) weights[160 + i] = value(Digit(b.qs[32 + i % 16], i / 16));
  for (int i = 0; i < 16; ++i) weights[240 + i] = value(Digit(b.qh[i % 4], i / 4));
}

void DecodeTQ2_0(const uint8_t* block, float* weights) {
  const auto& b = *reinterpret_cast<const BlockTQ2_0*>(block);
  const float d = LoadHalf(b.d);
  for (int w = 0; w < 256; ++w) {
    const int q = b.qs[32 * (w / 128) + w % 32] >> (2 * (w / 32 % 4)) & 3;
    weights[w] = static_cast<float>(q - 1) * d;
  }
}

void DecodeQ1_0(const uint8_t* block, float* weights) {
  const auto& b = *reinterpret_cast<const BlockQ1_0*>(block);
  const float d = LoadHalf(b.d);
  for (int w = 0; w < 128; ++w) weights[w] = (b.qs[w / 8] >> (w % 8) & 1) != 0 ? d : -d;
}

void DecodeQ2_0(const uint8_t* block, float* weights) {
  const auto& b = *reinterpret_cast<const BlockQ2_0*>(block);
  const float d = LoadHalf(b.d);
  for (int w = 0; w < 64; ++w) {
    weights[w] = static_cast<float>((b.qs[w / 4] >> (2 * (w % 4)) & 3) - 1) * d;
  }
}

}  // namespace packtrain

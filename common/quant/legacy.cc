#include "common/quant/legacy.h"

#include <algorithm>
#include <cmath>

#include "common/quant/bytes.h"

namespace packtrain {
namespace {

// The largest |x| becomes +-127. Returns the unrounded scale; halves round away from zero.
float QuantizeTo127(const float* x, int8_t* q) {
  float largest = 0;
  for (int i = 0; i < 32; ++i) largest = std::max(largest, std::fabs(x[i]));
  const float d = largest / 127;
  const float inverse = d != 0 ? 1 / d : 0;
  for (int i = 0; i < 32; ++i) q[i] = static_cast<int8_t>(std::round(x[i] * inverse));
  return d;
}

}  // namespace

void DecodeQ4_0(const uint8_t* block, float* weights) {
  const auto& b = *reinterpret_cast<const BlockQ4_0*>(block);
  const float d = LoadHalf(b.d);
  for (int w = 0; w < 32; ++w) {
    weights[w] = static_cast<float>(Nibble(b.qs[w % 16], w / 16) - 8) * d;
  }
}

void DecodeQ4_1(const uint8_t* block, float* weights) {
  const auto& b = *reinterpret_cast<const BlockQ4_1*>(block);
  const float d = LoadHalf(b.d), m = LoadHalf(b.m);
  for (int w = 0; w < 32; ++w) {
    weights[w] = static_cast<float>(Nibble(b.qs[w % 16], w / 16)) * d + m;
  }
}

void DecodeQ5_0(const uint8_t* block, float* weights) {
  const auto& b = *reinterpret_cast<const BlockQ5_0*>(block);
  const float d = LoadHalf(b.d);
  const uint32_t high = LoadU32(b.high);
  for (int w = 0; w < 32; ++w) {
    const int q = Nibble(b.qs[w % 16], w / 16) | static_cast<int>(high >> w & 1) << 4;
    weights[w] = static_cast<float>(q - 16) * d;
  }
}

void DecodeQ5_1(const uint8_t* block, float* weights) {
  const auto& b = *reinterpret_cast<const BlockQ5_1*>(block);
  const float d = LoadHalf(b.d), m = LoadHalf(b.m);
  const uint32_t high = LoadU32(b.high);
  for (int w = 0; w < 32; ++w) {
    const int q = Nibble(b.qs[w % 16], w / 16) | static_cast<int>(high >> w & 1) << 4;
    weights[w] = static_cast<float>(q) * d + m;
  }
}

void DecodeQ8_0(const uint8_t* block, float* weights) {
  const auto& b = *reinterpret_cast<const BlockQ8_0*>(block);
  const float d = LoadHalf(b.d);
  for (int w = 0; w < 32; ++w) weights[w] = static_cast<float>(b.qs[w]) * d;
}

void DecodeQ8_1(const uint8_t* block, float* weights) {
  const auto& b = *reinterpret_cast<const BlockQ8_1*>(block);
  const float d = LoadHalf(b.d);
  for (int w = 0; w < 32; ++w) weights[w] = static_cast<float>(b.qs[w]) * d;
}

void EncodeQ4_1(const float* weights, uint8_t* block) {
  auto& b = *reinterpret_cast<BlockQ4_1*>(block);
  const auto [low, high] = std::minmax_element(weights, weights + 32);
  const float d = (*high - *low) / 15;
  const float inverse = d != 0 ? 1 / d : 0;
  StoreHalf(d, b.d);
  StoreHalf(*low, b.m);
  const auto quantize = [&, least = *low](float x) {
    return std::min(15, static_cast<int>((x - least) * inverse + 0.5f));
  };
  for (int j = 0; j < 16; ++j) {
    b.qs[j] = static_cast<uint8_t>(quantize(weights[j]) | quantize(weights[j + 16]) << 4);
  }
}

void EncodeQ8_0(const float* weights, uint8_t* block) {
  auto& b = *reinterpret_cast<BlockQ8_0*>(block);
  StoreHalf(QuantizeTo127(weights, b.qs), b.d);
}

void EncodeQ8_1(const float* weights, uint8_t* block) {
  auto& b = *reinterpret_cast<BlockQ8_1*>(block);
  const float d = QuantizeTo127(weights, b.qs);
  int sum = 0;
  for (int8_t q : b.qs) sum += q;
  StoreHalf(d, b.d);
  StoreHalf(static_cast<float>(sum) * d, b.s);
}

}  // namespace packtrain

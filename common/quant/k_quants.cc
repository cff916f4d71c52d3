#include "common/quant/k_quants.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "common/quant/bytes.h"

namespace packtrain {
namespace {

int RoundHalfEven(float x) { return static_cast<int>(std::lrint(x)); }

// An affine code for 32 values: x ~ scale * q - min with q in 0..15, min >= 0.
struct AffineFit {
  float scale = 0;
  float min = 0;
  uint8_t q[32] = {};
};

// Weighted squared error of x against scale * q + offset.
float FitError(const float* x, const float* importance, const uint8_t* q, float scale,
               float offset) {
  float error = 0;
  for (int i = 0; i < 32; ++i) {
    const float difference = scale * static_cast<float>(q[i]) + offset - x[i];
    error += importance[i] * (difference * difference);
  }
  return error;
}

// Tries 21 step sizes around range / 15; for each the rounded codes, then the weighted least
// squares scale and offset for those codes, and keeps the best. The offset never exceeds 0. The
// range starts at the best offset so far, as in the format's reference, so that equal input gives
// equal files.
AffineFit FitAffine(const float* x, const float* importance) {
  AffineFit best;
  const auto [low_it, high_it] = std::minmax_element(x, x + 32);
  const float low = std::min(*low_it, 0.0f), high = *high_it;
  if (high == low) {
    best.min = -low;
    return best;
  }
  float sum_w = 0, sum_x = 0;
  for (int i = 0; i < 32; ++i) {
    sum_w += importance[i];
    sum_x += importance[i] * x[i];
  }
  float offset = low;
  const auto round_codes = [&](float inverse, uint8_t* q) {
    for (int i = 0; i < 32; ++i) {
      q[i] = static_cast<uint8_t>(std::clamp(RoundHalfEven(inverse * (x[i] - offset)), 0, 15));
    }
  };
  float inverse = 15 / (high - low);
  round_codes(inverse, best.q);
  best.scale = 1 / inverse;
  float best_error = FitError(x, importance, best.q, best.scale, offset);
  for (int step = 0; step <= 20; ++step) {
    inverse = (-1 + 0.1f * static_cast<float>(step) + 15) / (high - offset);
    uint8_t q[32];
    round_codes(inverse, q);
    float sum_q = 0, sum_qq = 0, sum_qx = 0;
    for (int i = 0; i < 32; ++i) {
      const auto code = static_cast<float>(q[i]);
      const float weighted = importance[i] * code;
      sum_q += weighted;
      sum_qq += weighted * code;
      sum_qx += weighted * x[i];
    }
    const float determinant = sum_w * sum_qq - sum_q * sum_q;
    if (!(determinant > 0)) continue;
    float scale = (sum_w * sum_qx - sum_x * sum_q) / determinant;
    float shift = (sum_qq * sum_x - sum_q * sum_qx) / determinant;
    if (shift > 0) {
      shift = 0;
      scale = sum_qx / sum_qq;
    }
    const float error = FitError(x, importance, q, scale, shift);
    if (error < best_error) {
      best_error = error;
      best.scale = scale;
      offset = shift;
      std::memcpy(best.q, q, sizeof q);
    }
  }
  best.min = -offset;
  return best;
}

void PackK4Scales(const uint8_t scales[8], const uint8_t mins[8], uint8_t packed[12]) {
  for (int i = 0; i < 4; ++i) {
    packed[i] = static_cast<uint8_t>(scales[i] | (scales[i + 4] >> 4) << 6);
    packed[i + 4] = static_cast<uint8_t>(mins[i] | (mins[i + 4] >> 4) << 6);
    packed[i + 8] = static_cast<uint8_t>((scales[i + 4] & 15) | (mins[i + 4] & 15) << 4);
  }
}

}  // namespace

void UnpackK4Scales(const uint8_t packed[12], uint8_t scales[8], uint8_t mins[8]) {
  for (int i = 0; i < 4; ++i) {
    scales[i] = packed[i] & 63;
    mins[i] = packed[i + 4] & 63;
    scales[i + 4] = static_cast<uint8_t>((packed[i + 8] & 15) | (packed[i] >> 6) << 4);
    mins[i + 4] = static_cast<uint8_t>(packed[i + 8] >> 4 | (packed[i + 4] >> 6) << 4);
  }
}

void UnpackQ3KScales(const uint8_t packed[12], int8_t scales[16]) {
  for (int i = 0; i < 16; ++i) {
    const int low = packed[i % 8] >> (4 * (i / 8)) & 15;
    const int high = packed[8 + i % 4] >> (2 * (i / 4)) & 3;
    scales[i] = static_cast<int8_t>((low | high << 4) - 32);
  }
}

void DecodeQ2_K(const uint8_t* block, float* weights) {
  const auto& b = *reinterpret_cast<const BlockQ2_K*>(block);
  const float d = LoadHalf(b.d), dmin = LoadHalf(b.dmin);
  for (int w = 0; w < 256; ++w) {
    const int q = b.qs[32 * (w / 128) + w % 32] >> (2 * (w / 32 % 4)) & 3;
    const uint8_t s = b.scales[w / 16];
    weights[w] =
        d * static_cast<float>(s & 15) * static_cast<float>(q) - dmin * static_cast<float>(s >> 4);
  }
}

void DecodeQ3_K(const uint8_t* block, float* weights) {
  const auto& b = *reinterpret_cast<const BlockQ3_K*>(block);
  const float d = LoadHalf(b.d);
  int8_t scales[16];
  UnpackQ3KScales(b.scales, scales);
  for (int w = 0; w < 256; ++w) {
    const int q = b.qs[32 * (w / 128) + w % 32] >> (2 * (w / 32 % 4)) & 3;
    const int v = q - ((b.hmask[w % 32] >> (w / 32) & 1) != 0 ? 0 : 4);
    weights[w] = d * static_cast<float>(scales[w / 16]) * static_cast<float>(v);
  }
}

void DecodeQ4_K(const uint8_t* block, float* weights) {
  const auto& b = *reinterpret_cast<const BlockQ4_K*>(block);
  const float d = LoadHalf(b.d), dmin = LoadHalf(b.dmin);
  uint8_t scales[8], mins[8];
  UnpackK4Scales(b.scales, scales, mins);
  for (int w = 0; w < 256; ++w) {
    const int q = Nibble(b.qs[32 * (w / 64) + w % 32], w / 32 % 2);
    weights[w] = d * static_cast<float>(scales[w / 32]) * static_cast<float>(q) -
                 dmin * static_cast<float>(mins[w / 32]);
  }
}

void DecodeQ5_K(const uint8_t* block, float* weights) {
  const auto& b = *reinterpret_cast<const BlockQ5_K*>(block);
  const float d = LoadHalf(b.d), dmin = LoadHalf(b.dmin);
  uint8_t scales[8], mins[8];
  UnpackK4Scales(b.scales, scales, mins);
  for (int w = 0; w < 256; ++w) {
    const int q = Nibble(b.qs[32 * (w / 64) + w % 32], w / 32 % 2) | (b.qh[w % 32] >> (w / 32) & 1)
                                                                         << 4;
    weights[w] = d * static_cast<float>(scales[w / 32]) * static_cast<float>(q) -
                 dmin * static_cast<float>(mins[w / 32]);
  }
}

void DecodeQ6_K(const uint8_t* block, float* weights) {
  const auto& b = *reinterpret_cast<const BlockQ6_K*>(block);
  const float d = LoadHalf(b.d);
  for (int w = 0; w < 256; ++w) {
    const int n = w / 128, k = w / 32 % 4, l = w % 32;
    const int low = Nibble(b.ql[64 * n + 32 * (k % 2) + l], k / 2);
    const int high = b.qh[32 * n + l] >> (2 * k) & 3;
    const int v = (low | high << 4) - 32;
    weights[w] = d * static_cast<float>(b.scales[w / 16]) * static_cast<float>(v);
  }
}

void DecodeQ8_K(const uint8_t* block, float* weights) {
  const auto& b = *reinterpret_cast<const BlockQ8_K*>(block);
  float d;
  std::memcpy(&d, b.d, sizeof d);
  for (int w = 0; w < 256; ++w) weights[w] = d * static_cast<float>(b.qs[w]);
}

void EncodeQ4_K(const float* weights, uint8_t* block) {
  auto& b = *reinterpret_cast<BlockQ4_K*>(block);
  AffineFit fits[8];
  float max_scale = 0, max_min = 0;
  for (int g = 0; g < 8; ++g) {
    const float* x = weights + 32 * g;
    float sum_squares = 0;
    for (int i = 0; i < 32; ++i) sum_squares += x[i] * x[i];
    const float typical = std::sqrt(sum_squares / 32);
    float importance[32];
    for (int i = 0; i < 32; ++i) importance[i] = typical + std::fabs(x[i]);
    fits[g] = FitAffine(x, importance);
    max_scale = std::max(max_scale, fits[g].scale);
    max_min = std::max(max_min, fits[g].min);
  }
  const float inverse_scale = max_scale > 0 ? 63 / max_scale : 0;
  const float inverse_min = max_min > 0 ? 63 / max_min : 0;
  uint8_t scales[8], mins[8];
  for (int g = 0; g < 8; ++g) {
    scales[g] = static_cast<uint8_t>(std::min(63, RoundHalfEven(inverse_scale * fits[g].scale)));
    mins[g] = static_cast<uint8_t>(std::min(63, RoundHalfEven(inverse_min * fits[g].min)));
  }
  PackK4Scales(scales, mins, b.scales);
  StoreHalf(max_scale / 63, b.d);
  StoreHalf(max_min / 63, b.dmin);
  // The codes once more, now against the scales as stored.
  for (int g = 0; g < 8; ++g) {
    const float d = LoadHalf(b.d) * static_cast<float>(scales[g]);
    if (d == 0) continue;
    const float m = LoadHalf(b.dmin) * static_cast<float>(mins[g]);
    for (int i = 0; i < 32; ++i) {
      const int q = RoundHalfEven((weights[32 * g + i] + m) / d);
      fits[g].q[i] = static_cast<uint8_t>(std::clamp(q, 0, 15));
    }
  }
  for (int j = 0; j < 128; ++j) {
    const int c = j / 32, l = j % 32;
    b.qs[j] = static_cast<uint8_t>(fits[2 * c].q[l] | fits[2 * c + 1].q[l] << 4);
  }
}

void EncodeQ8_K(const float* weights, uint8_t* block) {
  auto& b = *reinterpret_cast<BlockQ8_K*>(block);
  float extreme = 0;
  for (int i = 0; i < 256; ++i) {
    if (std::fabs(weights[i]) > std::fabs(extreme)) extreme = weights[i];
  }
  if (extreme == 0) {
    std::memset(block, 0, sizeof b);
    return;
  }
  const float inverse = -127 / extreme;
  for (int i = 0; i < 256; ++i) {
    b.qs[i] = static_cast<int8_t>(std::min(127, RoundHalfEven(inverse * weights[i])));
  }
  for (int g = 0; g < 16; ++g) {
    int16_t sum = 0;
    for (int i = 0; i < 16; ++i) sum = static_cast<int16_t>(sum + b.qs[16 * g + i]);
    std::memcpy(b.bsums + 2 * g, &sum, sizeof sum);
  }
  const float d = 1 / inverse;
  std::memcpy(b.d, &d, sizeof d);
}

}  // namespace packtrain

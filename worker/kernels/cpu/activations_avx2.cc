#include "worker/kernels/cpu/activations_avx2.h"

#include <immintrin.h>

namespace packtrain {
namespace {

// Quantises `count` values (a multiple of 32) to +-127 and returns the step. As the reference's
// Q8_K, but for the sign of the step, which no product shows. A NaN makes the step NaN.
float Quantize(const float* x, size_t count, int8_t* q) {
  const __m256 abs_mask = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
  __m256 largest = _mm256_setzero_ps(), nan = largest;
  for (size_t i = 0; i < count; i += 8) {
    const __m256 v = _mm256_loadu_ps(x + i);
    nan = _mm256_or_ps(nan, _mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    largest = _mm256_max_ps(largest, _mm256_and_ps(v, abs_mask));
  }
  float max = 0;
  for (int lane = 0; lane < 8; ++lane) max = largest[lane] > max ? largest[lane] : max;
  const float inverse = max > 0 ? 127.0f / max : 0.0f;
  const auto rounded = [&](size_t i) {
    return _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + i), _mm256_set1_ps(inverse)));
  };
  for (size_t i = 0; i < count; i += 32) {
    const __m256i low = _mm256_packs_epi32(rounded(i), rounded(i + 8));
    const __m256i high = _mm256_packs_epi32(rounded(i + 16), rounded(i + 24));
    const __m256i bytes = _mm256_permutevar8x32_epi32(_mm256_packs_epi16(low, high),
                                                      _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(q + i), bytes);
  }
  if (_mm256_movemask_ps(nan) != 0) return __builtin_nanf("");
  return max > 0 ? 1.0f / inverse : 0.0f;
}

void StoreSums(ActivationUnitAvx2* unit) {
  for (int g = 0; g < 32; ++g) {
    int sum = 0;
    for (int i = 0; i < 8; ++i) sum += unit->q[8 * g + i];
    unit->negative_sums8[16 * (g % 2) + g / 2] = static_cast<int16_t>(-sum);
  }
  for (int g = 0; g < 16; ++g) {
    unit->negative_sums[8 * (g % 2) + g / 2] =
        static_cast<int16_t>(unit->negative_sums8[g] + unit->negative_sums8[16 + g]);
  }
  for (int g = 0; g < 8; ++g) {
    unit->negative_sums32[g] =
        static_cast<int16_t>(unit->negative_sums[g] + unit->negative_sums[8 + g]);
  }
}

}  // namespace

size_t UnitBytesAvx2(size_t n) { return (n + 255) / 256 * sizeof(ActivationUnitAvx2); }

void PrepareStep256Avx2(const float* x, size_t n, void* activation) {
  auto* units = static_cast<ActivationUnitAvx2*>(activation);
  for (size_t i = 0; 256 * i < n; ++i) {
    float* scales = units[i / 8 * 8].scale;
    if (i % 8 == 0) __builtin_memset(scales, 0, sizeof units->scale);
    scales[i % 8] = Quantize(x + 256 * i, 256, units[i].q);
    StoreSums(&units[i]);
  }
}

void PrepareStep32Avx2(const float* x, size_t n, void* activation) {
  auto* unit = static_cast<ActivationUnitAvx2*>(activation);
  for (size_t first = 0; first < n; first += 256, ++unit) {
    if (n - first < 256) __builtin_memset(static_cast<void*>(unit), 0, sizeof *unit);
    for (size_t b = 0; b < 8 && first + 32 * b < n; ++b) {
      unit->scale[b] = Quantize(x + first + 32 * b, 32, unit->q + 32 * b);
    }
    StoreSums(unit);
  }
}

}  // namespace packtrain

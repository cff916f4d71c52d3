// The types with a scale per 32 weights: Q8_0, Q4_0, IQ4_NL, MXFP4. One block is one vector of
// signed bytes; per row, token and block: f += (float(x) * scale_a) * scale_w.

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "common/quant/codebooks.h"
#include "worker/kernels/cpu/activations_avx2.h"
#include "worker/kernels/cpu/variants.h"

namespace packtrain {
namespace {

using Vec = __m256i;

inline Vec Load(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }

inline float LoadHalf(const uint8_t* p) {
  uint16_t v;
  __builtin_memcpy(&v, p, sizeof v);
  return _cvtsh_ss(v);
}

// Weights j and j + 16 share byte j.
inline Vec Nibbles(const uint8_t* p) {
  const __m128i q = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm256_and_si256(_mm256_set_m128i(_mm_srli_epi16(q, 4), q), _mm256_set1_epi8(15));
}

inline Vec LookUp(const int8_t (&values)[16], Vec nibbles) {
  const __m128i table = _mm_loadu_si128(reinterpret_cast<const __m128i*>(values));
  return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(table), nibbles);
}

struct Q8_0 {
  static constexpr size_t kBlockBytes = 34;
  static Vec Weights(const uint8_t* p) { return Load(p + 2); }
  static float Scale(const uint8_t* p) { return LoadHalf(p); }
};

struct Q4_0 {
  static constexpr size_t kBlockBytes = 18;
  static Vec Weights(const uint8_t* p) {
    return _mm256_sub_epi8(Nibbles(p + 2), _mm256_set1_epi8(8));
  }
  static float Scale(const uint8_t* p) { return LoadHalf(p); }
};

struct Iq4Nl {
  static constexpr size_t kBlockBytes = 18;
  static Vec Weights(const uint8_t* p) { return LookUp(kIq4NlValues, Nibbles(p + 2)); }
  static float Scale(const uint8_t* p) { return LoadHalf(p); }
};

struct Mxfp4 {
  static constexpr size_t kBlockBytes = 17;
  static Vec Weights(const uint8_t* p) { return LookUp(kFp4Values, Nibbles(p + 1)); }
  static float Scale(const uint8_t* p) {
    // 2^(e - 128): below 2^-126 the bit is in the mantissa.
    const uint32_t e = p[0];
    const uint32_t bits = e > 1 ? (e - 1) << 23 : 0x00200000u << e;
    float scale;
    __builtin_memcpy(&scale, &bits, sizeof scale);
    return scale;
  }
};

inline float Sum(__m256 x) {
  const __m128 four = _mm256_castps256_ps128(x) + _mm256_extractf128_ps(x, 1);
  return (four[0] + four[1]) + (four[2] + four[3]);
}

// *y[t] = row . activations[t]
template <typename Type, int kTokens>
void DotTokens(const uint8_t* row, size_t blocks, const ActivationUnitAvx2* const* a,
               float* const* y) {
  __m256 f[kTokens];
  for (int t = 0; t < kTokens; ++t) f[t] = _mm256_setzero_ps();
  for (size_t b = 0; b < blocks; ++b, row += Type::kBlockBytes) {
    const Vec weights = Type::Weights(row);
    const Vec magnitudes = _mm256_abs_epi8(weights);  // -128 becomes 128, unsigned
    const __m256 d = _mm256_set1_ps(Type::Scale(row));
#pragma GCC unroll 4
    for (int t = 0; t < kTokens; ++t) {
      const ActivationUnitAvx2& unit = a[t][b / 8];
      const Vec q = _mm256_sign_epi8(Load(unit.q + 32 * (b % 8)), weights);
      const Vec x = _mm256_madd_epi16(_mm256_maddubs_epi16(magnitudes, q), _mm256_set1_epi16(1));
      const __m256 scale = _mm256_set1_ps(unit.scale[b % 8]);
      f[t] = _mm256_fmadd_ps(_mm256_mul_ps(_mm256_cvtepi32_ps(x), scale), d, f[t]);
    }
  }
  for (int t = 0; t < kTokens; ++t) *y[t] = Sum(f[t]);
}

// WeightKernel::mat_mul.
template <typename Type>
void MatMul(const void* w, size_t rows, size_t n, const void* const* activations, size_t tokens,
            float* const* y) {
  const auto* row = static_cast<const uint8_t*>(w);
  const auto* a = reinterpret_cast<const ActivationUnitAvx2* const*>(activations);
  const size_t blocks = n / 32;
  // Rows in the outer loop, so that a row comes from memory once for all tokens.
  for (size_t r = 0; r < rows; ++r, row += blocks * Type::kBlockBytes) {
    for (size_t t = 0; t < tokens; t += 4) {
      float* out[4] = {};
      const size_t count = tokens - t < 4 ? tokens - t : 4;
      for (size_t k = 0; k < count; ++k) out[k] = y[t + k] + r;
      switch (count) {
        case 1:
          DotTokens<Type, 1>(row, blocks, a + t, out);
          break;
        case 2:
          DotTokens<Type, 2>(row, blocks, a + t, out);
          break;
        case 3:
          DotTokens<Type, 3>(row, blocks, a + t, out);
          break;
        default:
          DotTokens<Type, 4>(row, blocks, a + t, out);
      }
    }
  }
}

}  // namespace

const WeightKernel kQ8_0Avx2 = {kLayoutStep32, UnitBytesAvx2, PrepareStep32Avx2, MatMul<Q8_0>};
const WeightKernel kQ4_0Avx2 = {kLayoutStep32, UnitBytesAvx2, PrepareStep32Avx2, MatMul<Q4_0>};
const WeightKernel kIq4NlAvx2 = {kLayoutStep32, UnitBytesAvx2, PrepareStep32Avx2, MatMul<Iq4Nl>};
const WeightKernel kMxfp4Avx2 = {kLayoutStep32, UnitBytesAvx2, PrepareStep32Avx2, MatMul<Mxfp4>};

}  // namespace packtrain

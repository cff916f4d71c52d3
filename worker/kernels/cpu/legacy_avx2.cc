// The types with a scale per 32 weights: Q8_0, Q4_0, IQ4_NL, MXFP4.
//
// Eight blocks at a time, so that their sums and scales fill one vector: per row, token and eight
// blocks f += (float(sums) * scales_a) * scales_w, one block a lane.

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

// The halves that begin each of eight blocks.
template <size_t kBlockBytes>
inline __m256 HalfScales(const uint8_t* p) {
  alignas(16) uint16_t halves[8];
#pragma GCC unroll 8
  for (size_t b = 0; b < 8; ++b) __builtin_memcpy(&halves[b], p + b * kBlockBytes, 2);
  return _mm256_cvtph_ps(_mm_load_si128(reinterpret_cast<const __m128i*>(halves)));
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

// Products of 32 signed weights with 32 activations, four to a lane.
inline Vec SignedProducts(Vec weights, Vec q) {
  // The magnitude of -128 is 128, unsigned.
  const Vec pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(weights), _mm256_sign_epi8(q, weights));
  return _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
}

// Of weights from 0 to 15.
inline Vec UnsignedProducts(Vec weights, Vec q) {
  return _mm256_madd_epi16(_mm256_maddubs_epi16(weights, q), _mm256_set1_epi16(1));
}

// A type has kOffset, which Weights adds, Products, and Scales of eight blocks.
struct Q8_0 {
  static constexpr size_t kBlockBytes = 34;
  static constexpr int kOffset = 0;
  static Vec Weights(const uint8_t* p) { return Load(p + 2); }
  static Vec Products(Vec w, Vec q) { return SignedProducts(w, q); }
  static __m256 Scales(const uint8_t* p) { return HalfScales<kBlockBytes>(p); }
};

struct Q4_0 {
  static constexpr size_t kBlockBytes = 18;
  static constexpr int kOffset = 8;
  static Vec Weights(const uint8_t* p) { return Nibbles(p + 2); }
  static Vec Products(Vec w, Vec q) { return UnsignedProducts(w, q); }
  static __m256 Scales(const uint8_t* p) { return HalfScales<kBlockBytes>(p); }
};

struct Iq4Nl {
  static constexpr size_t kBlockBytes = 18;
  static constexpr int kOffset = 0;
  static Vec Weights(const uint8_t* p) { return LookUp(kIq4NlValues, Nibbles(p + 2)); }
  static Vec Products(Vec w, Vec q) { return SignedProducts(w, q); }
  static __m256 Scales(const uint8_t* p) { return HalfScales<kBlockBytes>(p); }
};

struct Mxfp4 {
  static constexpr size_t kBlockBytes = 17;
  static constexpr int kOffset = 12;
  static Vec Weights(const uint8_t* p) {
    return _mm256_add_epi8(LookUp(kFp4Values, Nibbles(p + 1)), _mm256_set1_epi8(kOffset));
  }
  static Vec Products(Vec w, Vec q) { return UnsignedProducts(w, q); }
  static __m256 Scales(const uint8_t* p) {
    uint64_t bytes = 0;
#pragma GCC unroll 8
    for (size_t b = 0; b < 8; ++b) bytes |= uint64_t{p[b * kBlockBytes]} << (8 * b);
    const Vec e = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(static_cast<int64_t>(bytes)));
    // 2^(e - 128): below 2^-126 the bit is in the mantissa.
    const Vec normal = _mm256_slli_epi32(_mm256_sub_epi32(e, _mm256_set1_epi32(1)), 23);
    const Vec small = _mm256_sllv_epi32(_mm256_set1_epi32(0x00200000), e);
    return _mm256_castsi256_ps(
        _mm256_blendv_epi8(small, normal, _mm256_cmpgt_epi32(e, _mm256_set1_epi32(1))));
  }
};

inline float Sum(__m256 x) {
  const __m128 four = _mm256_castps256_ps128(x) + _mm256_extractf128_ps(x, 1);
  return (four[0] + four[1]) + (four[2] + four[3]);
}

// Lane i is the sum of x[i].
inline Vec SumOfEach(const Vec* x) {
  const auto four = [x](int i) {
    return _mm256_hadd_epi32(_mm256_hadd_epi32(x[i], x[i + 1]),
                             _mm256_hadd_epi32(x[i + 2], x[i + 3]));
  };
  const Vec first = four(0), second = four(4);
  return _mm256_add_epi32(_mm256_permute2x128_si256(first, second, 0x20),
                          _mm256_permute2x128_si256(first, second, 0x31));
}

// f[t] += the products of eight blocks with unit u of the activations.
template <typename Type, int kTokens>
[[gnu::always_inline]] inline void AddEight(const uint8_t* p, const ActivationUnitAvx2* const* a,
                                            size_t u, __m256* f) {
  const __m256 scales = Type::Scales(p);
  Vec x[kTokens][8];
#pragma GCC unroll 8
  for (size_t b = 0; b < 8; ++b) {
    const Vec w = Type::Weights(p + b * Type::kBlockBytes);
#pragma GCC unroll 4
    for (int t = 0; t < kTokens; ++t) x[t][b] = Type::Products(w, Load(a[t][u].q + 32 * b));
  }
#pragma GCC unroll 4
  for (int t = 0; t < kTokens; ++t) {
    Vec sums = SumOfEach(x[t]);
    if constexpr (Type::kOffset != 0) {
      const Vec offsets =
          _mm256_mullo_epi32(Load(a[t][u].negative_sums32), _mm256_set1_epi32(Type::kOffset));
      sums = _mm256_add_epi32(sums, offsets);
    }
    f[t] = _mm256_fmadd_ps(_mm256_mul_ps(_mm256_cvtepi32_ps(sums), _mm256_load_ps(a[t][u].scale)),
                           scales, f[t]);
  }
}

// *y[t] = row . activations[t]
template <typename Type, int kTokens>
void DotTokens(const uint8_t* row, size_t blocks, const ActivationUnitAvx2* const* a,
               float* const* y) {
  __m256 f[kTokens];
  for (int t = 0; t < kTokens; ++t) f[t] = _mm256_setzero_ps();
  size_t u = 0;
  for (; u < blocks / 8; ++u, row += 8 * Type::kBlockBytes) AddEight<Type, kTokens>(row, a, u, f);
  if (const size_t left = blocks % 8; left != 0) {
    // The activations of the blocks that are not there have scale zero.
    uint8_t copy[8 * Type::kBlockBytes] = {};
    __builtin_memcpy(copy, row, left * Type::kBlockBytes);
    AddEight<Type, kTokens>(copy, a, u, f);
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
    size_t t = 0;
    for (; t + 2 <= tokens; t += 2) {
      float* out[] = {y[t] + r, y[t + 1] + r};
      DotTokens<Type, 2>(row, blocks, a + t, out);
    }
    if (t < tokens) {
      float* out[] = {y[t] + r};
      DotTokens<Type, 1>(row, blocks, a + t, out);
    }
  }
}

}  // namespace

const WeightKernel kQ8_0Avx2 = {kLayoutStep32, UnitBytesAvx2, PrepareStep32Avx2, MatMul<Q8_0>};
const WeightKernel kQ4_0Avx2 = {kLayoutStep32, UnitBytesAvx2, PrepareStep32Avx2, MatMul<Q4_0>};
const WeightKernel kIq4NlAvx2 = {kLayoutStep32, UnitBytesAvx2, PrepareStep32Avx2, MatMul<Iq4Nl>};
const WeightKernel kMxfp4Avx2 = {kLayoutStep32, UnitBytesAvx2, PrepareStep32Avx2, MatMul<Mxfp4>};

}  // namespace packtrain

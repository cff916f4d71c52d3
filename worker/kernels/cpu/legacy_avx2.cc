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

#include "worker/kernels/cpu/panel_avx2.inc"

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

// A type has kOffset, which Weights adds, Products, Scales of eight blocks, and what panel_avx2.inc
// asks for.
struct Block32 {
  static constexpr int kGroupQuads = 8;
};
struct SignedBlock32 : Block32 {
  static constexpr bool kSigned = true;
  static constexpr int kWordQuads = 1, kOffset = 0;
};
struct UnsignedBlock32 : Block32 {
  static constexpr bool kSigned = false;
};

struct Q8_0 : SignedBlock32 {
  static constexpr size_t kBlockBytes = 34;
  static Vec Weights(const uint8_t* p) { return Load(p + 2); }
  static Vec Products(Vec w, Vec q) { return SignedProducts(w, q); }
  static __m256 Scales(const uint8_t* p) { return HalfScales<kBlockBytes>(p); }
};

struct Q4_0 : UnsignedBlock32 {
  static constexpr size_t kBlockBytes = 18;
  static constexpr int kWordQuads = 8, kOffset = 8;
  static Vec Weights(const uint8_t* p) { return Nibbles(p + 2); }
  static Vec Products(Vec w, Vec q) { return UnsignedProducts(w, q); }
  static __m256 Scales(const uint8_t* p) { return HalfScales<kBlockBytes>(p); }
};

struct Iq4Nl : SignedBlock32 {
  static constexpr size_t kBlockBytes = 18;
  static Vec Weights(const uint8_t* p) { return LookUp(kIq4NlValues, Nibbles(p + 2)); }
  static Vec Products(Vec w, Vec q) { return SignedProducts(w, q); }
  static __m256 Scales(const uint8_t* p) { return HalfScales<kBlockBytes>(p); }
};

struct Mxfp4 : UnsignedBlock32 {
  static constexpr size_t kBlockBytes = 17;
  static constexpr int kWordQuads = 4, kOffset = 12;
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
          _mm256_mullo_epi32(_mm256_cvtepi16_epi32(Load128(a[t][u].negative_sums32)),
                             _mm256_set1_epi32(Type::kOffset));
      sums = _mm256_add_epi32(sums, offsets);
    }
    f[t] = AddScaled(sums, _mm256_load_ps(a[t][u].scale), scales, f[t]);
  }
}

// Few tokens: rows in the outer loop, so that a row comes from memory once for all of them.
template <typename Type, int kTokens>
void MatMulDirect(const uint8_t* row, size_t rows, size_t blocks,
                  const ActivationUnitAvx2* const* activations, float* const* y) {
  const ActivationUnitAvx2* a[kTokens];
  for (int t = 0; t < kTokens; ++t) a[t] = activations[t];
  const size_t left = blocks % 8;
  for (size_t r = 0; r < rows; ++r) {
    __m256 f[kTokens];
    for (int t = 0; t < kTokens; ++t) f[t] = _mm256_setzero_ps();
    size_t u = 0;
    for (; u < blocks / 8; ++u, row += 8 * Type::kBlockBytes) AddEight<Type, kTokens>(row, a, u, f);
    if (left != 0) {
      // The activations of the blocks that are not there have scale zero.
      uint8_t copy[8 * Type::kBlockBytes] = {};
      __builtin_memcpy(copy, row, left * Type::kBlockBytes);
      AddEight<Type, kTokens>(copy, a, u, f);
      row += left * Type::kBlockBytes;
    }
    for (int t = 0; t < kTokens; ++t) y[t][r] = Sum(f[t]);
  }
}

// `count` blocks of each of eight rows from block `first` on.
template <typename Type>
[[gnu::always_inline]] inline void FillPanel(const uint8_t* const* rows, size_t first, size_t count,
                                             PanelUnit* panel) {
  constexpr size_t kBytes = 8 * Type::kBlockBytes;
  uint8_t copies[kVectorRows][kBytes];
  const uint8_t* p[kVectorRows];
  Vec v[kVectorRows];
  for (size_t r = 0; r < kVectorRows; ++r) {
    p[r] = rows[r] + first * Type::kBlockBytes;
    if (count < 8) {
      __builtin_memset(copies[r], 0, kBytes);
      __builtin_memcpy(copies[r], p[r], count * Type::kBlockBytes);
      p[r] = copies[r];
    }
    v[r] = _mm256_castps_si256(Type::Scales(p[r]));
  }
  Vec scales[8];
  Transpose(v, scales);
  for (size_t b = 0; b < count; ++b) {
    panel->d[b] = _mm256_castsi256_ps(scales[b]);
    for (size_t r = 0; r < kVectorRows; ++r) v[r] = Type::Weights(p[r] + b * Type::kBlockBytes);
    Transpose(v, panel->w + 8 * b);
  }
}

// Unit u, of `count` blocks, of some tokens.
template <typename Type, int kTokens>
[[gnu::always_inline]] inline void UseBlocks(const PanelUnit* panel,
                                             const ActivationUnitAvx2* const* a, size_t u,
                                             size_t count, PanelSums* sums, size_t token) {
  const int8_t* q[kTokens];
  for (int t = 0; t < kTokens; ++t) q[t] = a[t][u].q;
  const Vec one[kPanelVectors] = {_mm256_set1_epi16(1), _mm256_set1_epi16(1)};
  for (size_t b = 0; b < count; ++b) {
    Vec x[kPanelVectors][kTokens];
    for (int t = 0; t < kTokens; ++t) {
      x[0][t] = x[1][t] = _mm256_set1_epi32(Type::kOffset * a[t][u].negative_sums32[b]);
    }
    AddGroup<Type, kTokens>(panel, static_cast<int>(b), one, q, x);
    for (int t = 0; t < kTokens; ++t) {
      const __m256 step = _mm256_set1_ps(a[t][u].scale[b]);
      for (size_t v = 0; v < kPanelVectors; ++v) {
        __m256& sum = sums[b][token + static_cast<size_t>(t)][v];
        sum = AddScaled(x[v][t], step, panel[v].d[b], sum);
      }
    }
  }
}

template <typename Type>
void MatMulPanel(const uint8_t* w, size_t rows, size_t blocks, const ActivationUnitAvx2* const* a,
                 size_t tokens, float* const* y) {
  const auto blocks_of = [blocks](size_t u) { return blocks - 8 * u < 8 ? blocks - 8 * u : 8; };
  ForPanels(
      w, rows, blocks * Type::kBlockBytes, (blocks + 7) / 8, tokens, 1.0f, y,
      [&](const uint8_t* const* row, size_t u, PanelUnit* panel) {
        FillPanel<Type>(row, 8 * u, blocks_of(u), panel);
      },
      [&](const PanelUnit* panel, size_t u, PanelSums* sums) {
        ForTokens(tokens, [&](auto count, size_t t) {
          UseBlocks<Type, decltype(count)::value>(panel, a + t, u, blocks_of(u), sums, t);
        });
      });
}

// WeightKernel::mat_mul.
template <typename Type>
void MatMul(const void* w, size_t rows, size_t n, const void* const* activations, size_t tokens,
            float* const* y) {
  const auto* first = static_cast<const uint8_t*>(w);
  const auto* a = reinterpret_cast<const ActivationUnitAvx2* const*>(activations);
  const size_t blocks = n / 32;
  switch (tokens) {
    case 1:
      return MatMulDirect<Type, 1>(first, rows, blocks, a, y);
    case 2:
      return MatMulDirect<Type, 2>(first, rows, blocks, a, y);
  }
  for (size_t t = 0; t < tokens; t += kPanelTokens) {
    const size_t count = tokens - t < kPanelTokens ? tokens - t : kPanelTokens;
    MatMulPanel<Type>(first, rows, blocks, a + t, count, y + t);
  }
}

}  // namespace

const WeightKernel kQ8_0Avx2 = {kLayoutStep32, UnitBytesAvx2, PrepareStep32Avx2, MatMul<Q8_0>,
                                kPanelRows};
const WeightKernel kQ4_0Avx2 = {kLayoutStep32, UnitBytesAvx2, PrepareStep32Avx2, MatMul<Q4_0>,
                                kPanelRows};
const WeightKernel kIq4NlAvx2 = {kLayoutStep32, UnitBytesAvx2, PrepareStep32Avx2, MatMul<Iq4Nl>,
                                 kPanelRows};
const WeightKernel kMxfp4Avx2 = {kLayoutStep32, UnitBytesAvx2, PrepareStep32Avx2, MatMul<Mxfp4>,
                                 kPanelRows};

}  // namespace packtrain

// The types with a scale per 32 weights: Q8_0, Q4_0, IQ4_NL, MXFP4. Eight blocks make a unit, so
// that the f32 step is shared: 32-bit lanes 2 b and 2 b + 1 belong to block b (kLayoutThirtyTwo).

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "common/quant/codebooks.h"
#include "worker/kernels/cpu/activations_avx512.h"
#include "worker/kernels/cpu/variants.h"

namespace packtrain {
namespace {

#include "worker/kernels/cpu/matmul_avx512.inc"

struct ThirtyTwo {
  static constexpr int kBlockWeights = 32;
  static constexpr int kVectors = 4, kStepUnits = 1;
  static constexpr bool kMins = false;
  static constexpr float kResultScale = 1.0f;
};

// Lane l of the result is value l / 2.
inline __m512 PairsOfLanes(__m256 x) {
  const Vec index = _mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
  return _mm512_permutexvar_ps(index, _mm512_castps256_ps512(x));
}

inline uint16_t Load16(const uint8_t* p) {
  uint16_t v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}

// The f16 at the start of each of eight blocks.
template <int kStride>
inline __m512 HalfScales(const uint8_t* p) {
  __m128i halves = _mm_cvtsi32_si128(Load16(p));
  halves = _mm_insert_epi16(halves, Load16(p + kStride), 1);
  halves = _mm_insert_epi16(halves, Load16(p + 2 * kStride), 2);
  halves = _mm_insert_epi16(halves, Load16(p + 3 * kStride), 3);
  halves = _mm_insert_epi16(halves, Load16(p + 4 * kStride), 4);
  halves = _mm_insert_epi16(halves, Load16(p + 5 * kStride), 5);
  halves = _mm_insert_epi16(halves, Load16(p + 6 * kStride), 6);
  halves = _mm_insert_epi16(halves, Load16(p + 7 * kStride), 7);
  return PairsOfLanes(_mm256_cvtph_ps(halves));
}

inline __m128i Load128(const uint8_t* p) {
  return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
}

// 16 bytes of blocks 0, 2, 4, 6 from `p`.
template <int kStride>
inline Vec EveryOther(const uint8_t* p) {
  const __m256i low =
      _mm256_inserti128_si256(_mm256_castsi128_si256(Load128(p)), Load128(p + 2 * kStride), 1);
  const __m256i high = _mm256_inserti128_si256(_mm256_castsi128_si256(Load128(p + 4 * kStride)),
                                               Load128(p + 6 * kStride), 1);
  return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
}

// The nibbles of eight blocks, 16 bytes each from `p`: w[v] has weights 8 v .. 8 v + 7 of each
// block, one block per qword. What is above a byte's low nibble is left as it is.
template <int kStride>
inline void Nibbles(const uint8_t* p, Vec* w) {
  const Vec even = EveryOther<kStride>(p), odd = EveryOther<kStride>(p + kStride);
  w[0] = _mm512_unpacklo_epi64(even, odd);
  w[1] = _mm512_unpackhi_epi64(even, odd);
  w[2] = _mm512_srli_epi16(w[0], 4);
  w[3] = _mm512_srli_epi16(w[1], 4);
}

class Q4_0 : public ThirtyTwo {
 public:
  static constexpr int kBlockBytes = 18, kStepBytes = 8 * 18;
  static Vec Init(Vec init) { return _mm512_slli_epi32(init, 3); }

  void Unpack(const uint8_t* p, WeightUnit<4>* unit) const {
    Nibbles<18>(p + 2, unit->w);
    for (Vec& w : unit->w) w = _mm512_and_si512(w, _mm512_set1_epi8(15));
    unit->scale = HalfScales<18>(p);
  }
};

class Iq4Nl : public ThirtyTwo {
 public:
  static constexpr int kBlockBytes = 18, kStepBytes = 8 * 18;
  static Vec Init(Vec init) { return _mm512_slli_epi32(init, 7); }

  void Unpack(const uint8_t* p, WeightUnit<4>* unit) const {
    Nibbles<18>(p + 2, unit->w);
    for (Vec& w : unit->w) w = _mm512_permutexvar_epi8(w, values_);
    unit->scale = HalfScales<18>(p);
  }

 private:
  static constexpr Bytes kValues = MakeBytes([](int n) { return 128 + kIq4NlValues[n % 16]; });

  Vec values_ = Load(kValues);
};

class Mxfp4 : public ThirtyTwo {
 public:
  static constexpr int kBlockBytes = 17, kStepBytes = 8 * 17;
  static Vec Init(Vec init) { return _mm512_slli_epi32(init, 4); }

  void Unpack(const uint8_t* p, WeightUnit<4>* unit) const {
    Nibbles<17>(p + 1, unit->w);
    for (Vec& w : unit->w) w = _mm512_permutexvar_epi8(w, values_);
    uint64_t exponents = 0;
    for (int b = 0; b < 8; ++b) exponents |= static_cast<uint64_t>(p[17 * b]) << (8 * b);
    const __m256i e = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(static_cast<int64_t>(exponents)));
    // 2^(e - 128): below 2^-126 the bit is in the mantissa.
    const __m256i normal = _mm256_slli_epi32(_mm256_sub_epi32(e, _mm256_set1_epi32(1)), 23);
    const __m256i subnormal = _mm256_sllv_epi32(_mm256_set1_epi32(0x00200000), e);
    const __mmask8 is_normal = _mm256_cmpgt_epi32_mask(e, _mm256_set1_epi32(1));
    unit->scale =
        PairsOfLanes(_mm256_castsi256_ps(_mm256_mask_blend_epi32(is_normal, subnormal, normal)));
  }

 private:
  static constexpr Bytes kValues = MakeBytes([](int n) { return 16 + kFp4Values[n % 16]; });

  Vec values_ = Load(kValues);
};

class Q8_0 : public ThirtyTwo {
 public:
  static constexpr int kBlockBytes = 34, kStepBytes = 8 * 34;
  static Vec Init(Vec init) { return _mm512_slli_epi32(init, 7); }

  void Unpack(const uint8_t* p, WeightUnit<4>* unit) const {
    // Blocks j and j + 4 in the halves of a vector, then a 4 x 4 transpose of qwords in each half.
    const Vec a = Halves(p), b = Halves(p + 34), c = Halves(p + 68), d = Halves(p + 102);
    const Vec even_ab = _mm512_unpacklo_epi64(a, b), odd_ab = _mm512_unpackhi_epi64(a, b);
    const Vec even_cd = _mm512_unpacklo_epi64(c, d), odd_cd = _mm512_unpackhi_epi64(c, d);
    const Vec lower = _mm512_setr_epi64(0, 1, 8, 9, 4, 5, 12, 13);
    const Vec upper = _mm512_setr_epi64(2, 3, 10, 11, 6, 7, 14, 15);
    unit->w[0] = _mm512_permutex2var_epi64(even_ab, lower, even_cd);
    unit->w[1] = _mm512_permutex2var_epi64(odd_ab, lower, odd_cd);
    unit->w[2] = _mm512_permutex2var_epi64(even_ab, upper, even_cd);
    unit->w[3] = _mm512_permutex2var_epi64(odd_ab, upper, odd_cd);
    const Vec sign = _mm512_set1_epi8(static_cast<char>(128));
    for (Vec& w : unit->w) w = _mm512_xor_si512(w, sign);
    unit->scale = HalfScales<34>(p);
  }

 private:
  static Vec Halves(const uint8_t* p) {
    const auto* low = reinterpret_cast<const __m256i*>(p + 2);
    const auto* high = reinterpret_cast<const __m256i*>(p + 4 * 34 + 2);
    return _mm512_inserti64x4(_mm512_castsi256_si512(_mm256_loadu_si256(low)),
                              _mm256_loadu_si256(high), 1);
  }
};

}  // namespace

const WeightKernel kQ8_0Avx512 = {kLayoutThirtyTwo, ThirtyTwoBytesAvx512, PrepareThirtyTwoAvx512,
                                  MatMul<Q8_0>};
const WeightKernel kQ4_0Avx512 = {kLayoutThirtyTwo, ThirtyTwoBytesAvx512, PrepareThirtyTwoAvx512,
                                  MatMul<Q4_0>};
const WeightKernel kIq4NlAvx512 = {kLayoutThirtyTwo, ThirtyTwoBytesAvx512, PrepareThirtyTwoAvx512,
                                   MatMul<Iq4Nl>};
const WeightKernel kMxfp4Avx512 = {kLayoutThirtyTwo, ThirtyTwoBytesAvx512, PrepareThirtyTwoAvx512,
                                   MatMul<Mxfp4>};

}  // namespace packtrain

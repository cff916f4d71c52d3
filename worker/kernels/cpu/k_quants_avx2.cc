// Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, IQ4_XS: 32 weights a vector in their natural order.

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "common/quant/codebooks.h"
#include "worker/kernels/cpu/activations_avx2.h"
#include "worker/kernels/cpu/variants.h"

namespace packtrain {
namespace {

#include "worker/kernels/cpu/matmul_avx2.inc"

inline Vec And(Vec x, uint8_t mask) {
  return _mm256_and_si256(x, _mm256_set1_epi8(static_cast<char>(mask)));
}

// Bit `from` of every byte moved to bit `to`, other bits of `mask` with it.
inline Vec MoveBits(Vec x, int from, int to, uint8_t mask) {
  return And(from <= to ? _mm256_slli_epi16(x, to - from) : _mm256_srli_epi16(x, from - to), mask);
}

// Sixteen bytes as 16-bit values, those of even groups first.
inline __m128i EvenThenOdd(__m128i bytes) {
  return _mm_shuffle_epi8(bytes,
                          _mm_setr_epi8(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15));
}

struct KQuant {
  static constexpr float kResultScale = 1.0f;
  static constexpr bool kOpenAhead = false, kSums8 = false;
};

struct WithMins : KQuant {
  static constexpr bool kMins = true, kSigned = false;
};

// The 6-bit scales and minima of Q4_K and Q5_K.
inline void K4Scales(const uint8_t* p, Header* h) {
  const uint32_t a = Load32(p + 4), b = Load32(p + 8), c = Load32(p + 12);
  const uint64_t scale_high = (c & 0x0f0f0f0f) | (a >> 2 & 0x30303030);
  const uint64_t min_high = (c >> 4 & 0x0f0f0f0f) | (b >> 2 & 0x30303030);
  const auto words = [](uint64_t bytes) {
    return ForBoth(_mm_cvtepu8_epi16(_mm_cvtsi64_si128(static_cast<int64_t>(bytes))));
  };
  h->scales = words((a & 0x3f3f3f3f) | scale_high << 32);
  h->terms[0] = words((b & 0x3f3f3f3f) | min_high << 32);
  h->d = LoadHalf(p);
  h->dmin = LoadHalf(p + 2);
}

struct Q4K : WithMins {
  static constexpr size_t kBlockBytes = 144;
  static constexpr int kGroupQuads = 8, kWordQuads = 8;

  void Open(const uint8_t* p, Header* h) const { K4Scales(p, h); }

  Vec Weights(const uint8_t* p, const Header&, int b) const {
    return MoveBits(Load(p + 16 + 32 * (b / 2)), 4 * (b % 2), 0, 15);
  }
};

struct Q5K : WithMins {
  static constexpr size_t kBlockBytes = 176;
  static constexpr int kGroupQuads = 8, kWordQuads = 4;

  void Open(const uint8_t* p, Header* h) const { K4Scales(p, h); }

  Vec Weights(const uint8_t* p, const Header&, int b) const {
    const Vec q = MoveBits(Load(p + 48 + 32 * (b / 2)), 4 * (b % 2), 0, 15);
    return _mm256_or_si256(q, MoveBits(Load(p + 16), b, 4, 16));
  }
};

struct Q2K : WithMins {
  static constexpr size_t kBlockBytes = 84;
  static constexpr int kGroupQuads = 4, kWordQuads = 4;

  void Open(const uint8_t* p, Header* h) const {
    const __m128i both = EvenThenOdd(Load128(p));
    const __m128i low = _mm_set1_epi8(15);
    h->scales = _mm256_cvtepu8_epi16(_mm_and_si128(both, low));
    h->terms[0] = _mm256_cvtepu8_epi16(_mm_and_si128(_mm_srli_epi16(both, 4), low));
    h->d = LoadHalf(p + 80);
    h->dmin = LoadHalf(p + 82);
  }

  Vec Weights(const uint8_t* p, const Header&, int b) const {
    return MoveBits(Load(p + 16 + 32 * (b / 4)), 2 * (b % 4), 0, 3);
  }
};

struct Q3K : KQuant {
  static constexpr size_t kBlockBytes = 110;
  static constexpr int kGroupQuads = 4, kWordQuads = 4;
  static constexpr bool kMins = false, kSigned = false;

  void Open(const uint8_t* p, Header* h) const {
    const uint64_t low = Load64(p + 96);
    const uint64_t high = Load32(p + 104);
    constexpr uint64_t kNibbles = 0x0f0f0f0f0f0f0f0f;
    constexpr uint64_t kPairs = 0x03030303;
    const uint64_t first = (low & kNibbles) | (high & kPairs) << 4 | (high >> 2 & kPairs) << 36;
    const uint64_t second =
        (low >> 4 & kNibbles) | (high >> 4 & kPairs) << 4 | (high >> 6 & kPairs) << 36;
    const __m128i biased =
        _mm_set_epi64x(static_cast<int64_t>(second), static_cast<int64_t>(first));
    h->scales = _mm256_sub_epi16(_mm256_cvtepu8_epi16(EvenThenOdd(biased)), _mm256_set1_epi16(32));
    h->terms[0] = _mm256_slli_epi16(h->scales, 2);
    h->d = LoadHalf(p + 108);
  }

  Vec Weights(const uint8_t* p, const Header&, int b) const {
    const Vec q = MoveBits(Load(p + 32 + 32 * (b / 4)), 2 * (b % 4), 0, 3);
    return _mm256_or_si256(q, MoveBits(Load(p), b, 2, 4));
  }
};

struct Q6K : KQuant {
  static constexpr size_t kBlockBytes = 210;
  static constexpr int kGroupQuads = 4, kWordQuads = 2;
  static constexpr bool kMins = false, kSigned = false;

  void Open(const uint8_t* p, Header* h) const {
    h->scales = _mm256_cvtepi8_epi16(EvenThenOdd(Load128(p + 192)));
    h->terms[0] = _mm256_slli_epi16(h->scales, 5);
    h->d = LoadHalf(p + 208);
  }

  Vec Weights(const uint8_t* p, const Header&, int b) const {
    const int n = b / 4, k = b % 4;
    const Vec q = MoveBits(Load(p + 64 * n + 32 * (k % 2)), 4 * (k / 2), 0, 15);
    return _mm256_or_si256(q, MoveBits(Load(p + 128 + 32 * n), 2 * k, 4, 0x30));
  }
};

struct Iq4Xs : KQuant {
  static constexpr size_t kBlockBytes = 136;
  static constexpr int kGroupQuads = 8, kWordQuads = 1;
  static constexpr bool kMins = false, kSigned = true;

  void Open(const uint8_t* p, Header* h) const {
    // Eight 2-bit fields of one word, and eight nibbles.
    const uint64_t head = Load64(p);
    const uint64_t low = _pdep_u64(head >> 32, 0x0f0f0f0f0f0f0f0f);
    const uint64_t high = _pdep_u64(head >> 16 & 0xffff, 0x3030303030303030);
    const __m128i biased = _mm_cvtepu8_epi16(_mm_cvtsi64_si128(static_cast<int64_t>(low | high)));
    h->scales = ForBoth(_mm_sub_epi16(biased, _mm_set1_epi16(32)));
    h->d = LoadHalf(p);
  }

  Vec Weights(const uint8_t* p, const Header&, int b) const {
    const __m128i q = Load128(p + 8 + 16 * b);
    const Vec nibbles = And(_mm256_set_m128i(_mm_srli_epi16(q, 4), q), 15);
    return _mm256_shuffle_epi8(ForBoth(Load128(kIq4NlValues)), nibbles);
  }
};

}  // namespace

const WeightKernel kQ2KAvx2 = {kLayoutStep256, UnitBytesAvx2, PrepareStep256Avx2, MatMul<Q2K>,
                               kPanelRows};
const WeightKernel kQ3KAvx2 = {kLayoutStep256, UnitBytesAvx2, PrepareStep256Avx2, MatMul<Q3K>,
                               kPanelRows};
const WeightKernel kQ4KAvx2 = {kLayoutStep256, UnitBytesAvx2, PrepareStep256Avx2, MatMul<Q4K>,
                               kPanelRows};
const WeightKernel kQ5KAvx2 = {kLayoutStep256, UnitBytesAvx2, PrepareStep256Avx2, MatMul<Q5K>,
                               kPanelRows};
const WeightKernel kQ6KAvx2 = {kLayoutStep256, UnitBytesAvx2, PrepareStep256Avx2, MatMul<Q6K>,
                               kPanelRows};
const WeightKernel kIq4XsAvx2 = {kLayoutStep256, UnitBytesAvx2, PrepareStep256Avx2, MatMul<Iq4Xs>,
                                 kPanelRows};

}  // namespace packtrain

// IQ1_S, IQ1_M. A weight times 8 is 8 level +- 1; the unsigned operand is 8 (level + 1) from the
// grid. The rest, -8 +- 1, is one for a whole group and multiplies the sum of its activations.

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "worker/kernels/cpu/activations_avx2.h"
#include "worker/kernels/cpu/grid_tables.h"
#include "worker/kernels/cpu/variants.h"

namespace packtrain {
namespace {

#include "worker/kernels/cpu/grid_avx2.inc"
struct Iq1 {
  static constexpr bool kMins = false, kSigned = false, kOpenAhead = true;
  static constexpr float kResultScale = 0.125f;
};

// 3-bit scales s that lie at bit 1 of each word become 2 s + 1.
inline __m128i OddOfThree(__m128i words) {
  return _mm_or_si128(_mm_and_si128(words, _mm_set1_epi16(0x0e)), _mm_set1_epi16(1));
}

class Iq1S : public Iq1 {
 public:
  static constexpr size_t kBlockBytes = 50;
  static constexpr int kGroupQuads = 8, kWordQuads = 8;
  static constexpr bool kSums8 = false;

  void Open(const uint8_t* p, Header* h) const {
    const __m128i words = Load128(p + 34);
    const __m128i scales = OddOfThree(_mm_srli_epi16(words, 11));
    h->scales = ForBoth(scales);
    // The offset is 9 where the sign of delta is set, else 7.
    const __m128i offset =
        _mm_sub_epi16(_mm_set1_epi16(7), _mm_slli_epi16(_mm_srai_epi16(words, 15), 1));
    h->terms[0] = ForBoth(_mm_mullo_epi16(scales, offset));
    h->d = LoadHalf(p);
    // Bits 3 k .. 3 k + 2 of a word are the upper ones of index k of its four; those of the last
    // are taken from the upper byte.
    constexpr int64_t kNext = 0x0202020202020202;
    constexpr auto kWord = static_cast<int64_t>(0x8001'0100'0100'0100);
    const Vec spread =
        _mm256_setr_epi64x(kWord, kWord + kNext, kWord + 2 * kNext, kWord + 3 * kNext);
    const Vec to_bit8 = _mm256_set1_epi64x(0x0080'0004'0020'0100);
#pragma GCC unroll 2
    for (int i = 0; i < 32; i += 16) {
      const Vec four = _mm256_set1_epi64x(static_cast<int64_t>(Load64(p + 34 + i / 2)));
      const Vec high = _mm256_mullo_epi16(_mm256_shuffle_epi8(four, spread), to_bit8);
      StoreIndex(h, i,
                 _mm256_or_si256(_mm256_cvtepu8_epi16(Load128(p + 2 + i)),
                                 _mm256_and_si256(high, _mm256_set1_epi16(0x700))));
    }
  }

  Vec Weights(const uint8_t*, const Header& h, int b) const {
    return FourEntries(grid_, h.index + 4 * b);
  }

 private:
  const uint64_t* grid_ = Grids().iq1_bytes;
};

class Iq1M : public Iq1 {
 public:
  static constexpr size_t kBlockBytes = 56;
  static constexpr int kGroupQuads = 4, kWordQuads = 4;
  static constexpr bool kSums8 = true;

  void Open(const uint8_t* p, Header* h) const {
    const uint64_t words = Load64(p + 48);
    // Scale g is at bit 3 (g % 4) of word g / 4. Words of even groups, then of odd ones.
    const __m128i all = _mm_cvtsi64_si128(static_cast<int64_t>(words));
    const __m128i twice = _mm_unpacklo_epi16(all, all);
    const auto scales = [twice](short first, short second) {
      // A product with 2^k moves a field up by k; all fields meet at bit 9.
      const __m128i up = _mm_mullo_epi16(
          twice, _mm_setr_epi16(first, second, first, second, first, second, first, second));
      return OddOfThree(_mm_srli_epi16(up, 8));
    };
    const __m128i even = scales(512, 8), odd = scales(64, 1);
    h->scales = _mm256_set_m128i(odd, even);
    h->d = static_cast<uint16_t>(_pext_u64(words, 0xf000f000f000f000));

    // Twelve bits per group of eight: the index and, above it, the sign of delta. Even groups of
    // eight, one per scale, then odd ones.
    const Vec low = Load(p), high = _mm256_cvtepu8_epi16(Load128(p + 32));
    const Vec first =
        _mm256_or_si256(_mm256_and_si256(low, _mm256_set1_epi16(0xff)),
                        _mm256_slli_epi16(_mm256_and_si256(high, _mm256_set1_epi16(0x0f)), 8));
    const Vec second =
        _mm256_or_si256(_mm256_srli_epi16(low, 8),
                        _mm256_slli_epi16(_mm256_and_si256(high, _mm256_set1_epi16(0xf0)), 4));
    StoreIndex(h, 0, _mm256_and_si256(first, _mm256_set1_epi16(0x7ff)));
    StoreIndex(h, 16, _mm256_and_si256(second, _mm256_set1_epi16(0x7ff)));
    // The offset is 9 where that sign is set, else 7.
    const Vec in_order =
        _mm256_set_m128i(_mm_unpackhi_epi16(even, odd), _mm_unpacklo_epi16(even, odd));
    const auto offset = [in_order](Vec group) {
      const Vec minus = _mm256_srai_epi16(_mm256_slli_epi16(group, 4), 15);
      return _mm256_mullo_epi16(
          in_order, _mm256_sub_epi16(_mm256_set1_epi16(7), _mm256_add_epi16(minus, minus)));
    };
    h->terms[0] = offset(first);
    h->terms[1] = offset(second);
  }

  Vec Weights(const uint8_t*, const Header& h, int b) const {
    const uint16_t* even = h.index + 2 * b;
    const uint16_t in_order[] = {even[0], even[16], even[1], even[17]};
    return FourEntries(grid_, in_order);
  }

 private:
  const uint64_t* grid_ = Grids().iq1_bytes;
};

}  // namespace

const WeightKernel kIq1SAvx2 = {kLayoutStep256, UnitBytesAvx2, PrepareStep256Avx2, MatMul<Iq1S>,
                                kPanelRows};
const WeightKernel kIq1MAvx2 = {kLayoutStep256, UnitBytesAvx2, PrepareStep256Avx2, MatMul<Iq1M>,
                                kPanelRows};

}  // namespace packtrain

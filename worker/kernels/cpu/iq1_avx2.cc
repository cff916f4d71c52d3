// IQ1_S, IQ1_M. A weight times 8 is 8 level +- 1; the unsigned operand is 8 (level + 1) from the
// grid plus 2 or 0, so its offset is 9.

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
  static constexpr bool kMins = false, kSigned = false;
  static constexpr float kResultScale = 0.125f;
  static Vec Offset(Vec x) { return _mm256_add_epi32(_mm256_slli_epi32(x, 3), x); }
};

// 3-bit scales s that lie at bit 1 of each word become 2 s + 1.
inline __m128i OddOfThree(__m128i words) {
  return _mm_or_si128(_mm_and_si128(words, _mm_set1_epi16(0x0e)), _mm_set1_epi16(1));
}

class Iq1S : public Iq1 {
 public:
  static constexpr size_t kBlockBytes = 50;

  void Open(const uint8_t* p, Header* h) const {
    h->scales = ForBoth(OddOfThree(_mm_srli_epi16(Load128(p + 34), 11)));
    h->d = LoadHalf(p);
  }

  Vec Weights(const uint8_t* p, const Header&, int b) const {
    const uint8_t* i = p + 2 + 4 * b;
    uint16_t word;
    __builtin_memcpy(&word, p + 34 + 2 * b, sizeof word);
    const uint64_t high = word;
    const Vec w = FourEntries(grid_, i[0] | (high << 8 & 0x700), i[1] | (high << 5 & 0x700),
                              i[2] | (high << 2 & 0x700), i[3] | (high >> 1 & 0x700));
    return _mm256_add_epi8(w, _mm256_set1_epi8((word & 0x8000) != 0 ? 0 : 2));
  }

 private:
  const uint64_t* grid_ = Grids().iq1_bytes;
};

class Iq1M : public Iq1 {
 public:
  static constexpr size_t kBlockBytes = 56;

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
    h->scales = _mm256_set_m128i(scales(64, 1), scales(512, 8));
    h->d = _cvtsh_ss(static_cast<uint16_t>(_pext_u64(words, 0xf000f000f000f000)));
  }

  Vec Weights(const uint8_t* p, const Header&, int b) const {
    const uint8_t* i = p + 4 * b;
    const uint64_t low = p[32 + 2 * b], high = p[33 + 2 * b];
    const Vec w = FourEntries(grid_, i[0] | (low << 8 & 0x700), i[1] | (low << 4 & 0x700),
                              i[2] | (high << 8 & 0x700), i[3] | (high << 4 & 0x700));
    const Vec bit =
        _mm256_setr_epi64x(0x0808080808080808, static_cast<int64_t>(0x8080808080808080),
                           0x0808080808080808, static_cast<int64_t>(0x8080808080808080));
    const Vec source = _mm256_set_m128i(_mm_set1_epi8(static_cast<char>(high)),
                                        _mm_set1_epi8(static_cast<char>(low)));
    const Vec minus = _mm256_cmpeq_epi8(_mm256_and_si256(source, bit), bit);
    return _mm256_add_epi8(w, _mm256_andnot_si256(minus, _mm256_set1_epi8(2)));
  }

 private:
  const uint64_t* grid_ = Grids().iq1_bytes;
};

}  // namespace

const WeightKernel kIq1SAvx2 = {kLayoutStep256, UnitBytesAvx2, PrepareStep256Avx2, MatMul<Iq1S>};
const WeightKernel kIq1MAvx2 = {kLayoutStep256, UnitBytesAvx2, PrepareStep256Avx2, MatMul<Iq1M>};

}  // namespace packtrain

// IQ1_S, IQ1_M. As iq2_avx512.cc; the 2048 entries are read from L1, shared by four blocks. A
// weight times 8 is 8 level +- 1; with code = level + 1 the unsigned operand is 8 code + (0 or 2),
// offset 9.

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "worker/kernels/cpu/activations_avx512.h"
#include "worker/kernels/cpu/grid_tables.h"
#include "worker/kernels/cpu/variants.h"

namespace packtrain {
namespace {

#include "worker/kernels/cpu/grid_avx512.inc"

// What the two types have in common once the index bits and the signs of delta are masks.
struct Iq1 {
  static constexpr int kBlockWeights = 256;
  static constexpr int kVectors = 4, kStepUnits = 4;
  static constexpr bool kMins = false;
  static constexpr float kResultScale = 0.125f;
  static Vec Init(Vec init) { return init; }

  // index[p], bits[p], bit10[p]: blocks 2 p and 2 p + 1; minus[b]: delta of block b is negative.
  void Decode(const Vec* index, const IndexBits* bits, const __mmask64* bit10,
              const __mmask64* minus, WeightUnit<4>* units) const {
    Vec low[2], low_upper[2], high[2], high_upper[2];
    Lookup1024<2>(grids->iq1_low, index, bits, low);
    Lookup1024<2>(grids->iq1_low + 1024, index, bits, low_upper);
    Lookup1024<2>(grids->iq1_high, index, bits, high);
    Lookup1024<2>(grids->iq1_high + 1024, index, bits, high_upper);
    for (int p = 0; p < 2; ++p) {
      const Vec l = Blend(bit10[p], low[p], low_upper[p]);
      const Vec h = Blend(bit10[p], high[p], high_upper[p]);
      Planes(_mm512_unpacklo_epi8(l, h), minus[2 * p], units[2 * p].w);
      Planes(_mm512_unpackhi_epi8(l, h), minus[2 * p + 1], units[2 * p + 1].w);
    }
  }

  void Planes(Vec codes, __mmask64 minus, Vec* w) const {
    constexpr int kFlips[2] = {8, 16};
    w[0] = Affine<0>(codes, FieldMatrix(0, kFlips));
    w[1] = Affine<0>(codes, FieldMatrix(2, kFlips));
    w[2] = Affine<0>(codes, FieldMatrix(4, kFlips));
    w[3] = Affine<0>(codes, FieldMatrix(6, kFlips));
    const Vec delta = _mm512_mask_blend_epi8(minus, _mm512_set1_epi8(2), _mm512_setzero_si512());
    for (int v = 0; v < 4; ++v) w[v] = _mm512_add_epi8(w[v], delta);
  }

  const GridTables* grids = &Grids();
};

// A 3-bit scale s that lies at bit 1 becomes 2 s + 1.
inline Vec OddOfThree(Vec x) {
  return _mm512_ternarylogic_epi32(x, _mm512_set1_epi32(0x0e), _mm512_set1_epi32(1), 0xea);
}

// IQ1_S: where index bit 8 + `bit` of group n % 8 lies in the two high words of eight groups.
constexpr int HighBit(int n, int bit) { return 16 * (n % 8 / 4) + 3 * (n % 4) + bit; }

class Iq1S : public Iq1 {
 public:
  static constexpr int kBlockBytes = 50, kStepBytes = 4 * 50, kScaleAt = 0;

  void Unpack(const uint8_t* p, const float* d, WeightUnit<4>* units) const {
    Vec index[2];
    IndexBits bits[2];
    __mmask64 bit10[2], minus[4];
    for (int pair = 0; pair < 2; ++pair) {
      const uint8_t* block = p + 100 * pair;
      index[pair] = TwoBlocks(block + 2, block + 52);
      // The high word of sub-block b serves its four groups; bring the two words of each eight
      // groups into one qword, first block in even qwords.
      const Vec words = HighWords(block);
      bits[pair] = {_mm512_movepi8_mask(index[pair]),
                    _mm512_bitshuffle_epi64_mask(words, Load(kBit8)),
                    _mm512_bitshuffle_epi64_mask(words, Load(kBit9))};
      bit10[pair] = _mm512_bitshuffle_epi64_mask(words, Load(kBit10));
    }
    for (int b = 0; b < 4; ++b) {
      const uint8_t* block = p + 50 * b;
      const Vec words =
          _mm512_cvtepu16_epi64(_mm_loadu_si128(reinterpret_cast<const __m128i*>(block + 34)));
      minus[b] = _mm512_movepi8_mask(_mm512_multishift_epi64_epi8(_mm512_set1_epi8(8), words));
      const Vec scales = OddOfThree(_mm512_multishift_epi64_epi8(_mm512_set1_epi8(11), words));
      units[b].scale = LaneScales(scales, _mm512_set1_ps(d[b]));
    }
    Decode(index, bits, bit10, minus, units);
  }

 private:
  static Vec HighWords(const uint8_t* block) {
    const __m128i a = _mm_loadu_si128(reinterpret_cast<const __m128i*>(block + 34));
    const __m128i b = _mm_loadu_si128(reinterpret_cast<const __m128i*>(block + 84));
    const Vec both = _mm512_cvtepu32_epi64(_mm256_set_m128i(b, a));
    return _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7), both);
  }

  static constexpr Bytes kBit8 = MakeBytes([](int n) { return HighBit(n, 0); });
  static constexpr Bytes kBit9 = MakeBytes([](int n) { return HighBit(n, 1); });
  static constexpr Bytes kBit10 = MakeBytes([](int n) { return HighBit(n, 2); });
};

class Iq1M : public Iq1 {
 public:
  static constexpr int kBlockBytes = 56, kStepBytes = 4 * 56;

  void Unpack(const uint8_t* p, WeightUnit<4>* units) const {
    Vec index[2];
    IndexBits bits[2];
    __mmask64 bit10[2], minus[4];
    for (int pair = 0; pair < 2; ++pair) {
      const uint8_t* block = p + 112 * pair;
      index[pair] = TwoBlocks(block, block + 56);
      // qh has a nibble per group: three index bits and the sign of delta.
      const __m128i a = _mm_loadu_si128(reinterpret_cast<const __m128i*>(block + 32));
      const __m128i b = _mm_loadu_si128(reinterpret_cast<const __m128i*>(block + 88));
      const Vec both = _mm512_cvtepu32_epi64(_mm256_set_m128i(b, a));
      const Vec high = _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7), both);
      bits[pair] = {_mm512_movepi8_mask(index[pair]),
                    _mm512_bitshuffle_epi64_mask(high, Load(kBit8)),
                    _mm512_bitshuffle_epi64_mask(high, Load(kBit9))};
      bit10[pair] = _mm512_bitshuffle_epi64_mask(high, Load(kBit10));
    }
    for (int b = 0; b < 4; ++b) {
      const uint8_t* block = p + 56 * b;
      // Here two bytes serve one group: spread the 16 bytes so that qword i has groups 4 i .. 4 i
      // + 3.
      const Vec high =
          _mm512_cvtepu16_epi64(_mm_loadu_si128(reinterpret_cast<const __m128i*>(block + 32)));
      minus[b] = _mm512_bitshuffle_epi64_mask(high, Load(kDelta));
      const uint64_t words = Load64(block + 48);
      const auto half = static_cast<uint16_t>(_pext_u64(words, 0xf000f000f000f000));
      const Vec all = _mm512_set1_epi64(static_cast<int64_t>(words));
      const Vec scales = OddOfThree(_mm512_multishift_epi64_epi8(Load(kScaleToLane), all));
      units[b].scale = LaneScales(scales, _mm512_set1_ps(_cvtsh_ss(half)));
    }
    Decode(index, bits, bit10, minus, units);
  }

 private:
  static constexpr Bytes kBit8 = MakeBytes([](int n) { return 4 * (n % 8); });
  static constexpr Bytes kBit9 = MakeBytes([](int n) { return 4 * (n % 8) + 1; });
  static constexpr Bytes kBit10 = MakeBytes([](int n) { return 4 * (n % 8) + 2; });
  static constexpr Bytes kDelta = MakeBytes([](int n) { return 4 * (n / 2 % 4) + 3; });
  // Scale g is at bit 3 (g % 4) of word g / 4; lane g wants it at bit 1.
  static constexpr Bytes kScaleToLane =
      MakeBytes([](int n) { return (16 * (n / 16) + 3 * (n / 4 % 4) - 1) & 63; });
};

}  // namespace

const WeightKernel kIq1SAvx512 = {kLayoutGridTernary, GridTernaryBytesAvx512,
                                  PrepareGridTernaryAvx512, MatMul<Iq1S>};
const WeightKernel kIq1MAvx512 = {kLayoutGridTernary, GridTernaryBytesAvx512,
                                  PrepareGridTernaryAvx512, MatMul<Iq1M>};

}  // namespace packtrain

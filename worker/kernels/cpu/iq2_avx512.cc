// IQ2_XXS, IQ2_XS, IQ2_S.
//
// The grids stay in registers as 2-bit codes: vpermb looks 64 indices up in 64 entries at a time.
// A code byte with its signs put beside it is an index again: vpermb reads six bits of it, two
// codes and their signs, and gives the weight of either. Weights carry an offset of 64, so that the
// dot product has an unsigned operand.

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "common/quant/codebooks.h"
#include "worker/kernels/cpu/activations_avx512.h"
#include "worker/kernels/cpu/grid_tables.h"
#include "worker/kernels/cpu/variants.h"

namespace packtrain {
namespace {

#include "worker/kernels/cpu/grid_avx512.inc"

// Planes 0..3 of code bytes: code v of each with its sign. Bits 2..5 of `signs` are the signs of
// codes 0, 2, 1 and 3.
inline void DecodePlanes(Vec codes, Vec signs, Vec* w) {
  static constexpr Bytes kLower = SignedLevels<2>(kIq2Levels, 0, 2),
                         kUpper = SignedLevels<2>(kIq2Levels, 4, 3);
  const Vec mask = _mm512_set1_epi8(0x33);
  const Vec even = Select(mask, codes, signs);
  const Vec odd = _mm512_srli_epi16(Select(mask, signs, codes), 2);
  w[0] = _mm512_permutexvar_epi8(even, Load(kLower));
  w[1] = _mm512_permutexvar_epi8(odd, Load(kLower));
  w[2] = _mm512_permutexvar_epi8(even, Load(kUpper));
  w[3] = _mm512_permutexvar_epi8(odd, Load(kUpper));
}

// The 16 scales of eight bytes of nibbles, one per 32-bit lane.
constexpr Bytes kNibbleToLane = MakeBytes([](int n) { return 8 * (n / 8) + 4 * (n / 4 % 2); });

inline __m512 NibbleScales(const uint8_t* nibbles, float d) {
  const Vec all = _mm512_set1_epi64(static_cast<int64_t>(Load64(nibbles)));
  return OddScales(_mm512_multishift_epi64_epi8(Load(kNibbleToLane), all), _mm512_set1_ps(d));
}

struct Iq2 {
  static constexpr int kBlockWeights = 256;
  static constexpr bool kMins = false;
  static constexpr float kResultScale = 0.125f;
  static constexpr int kScaleAt = 0;
  static Vec Init(Vec init) { return init; }
};

class Iq2Xxs : public Iq2 {
 public:
  static constexpr int kVectors = 8, kStepUnits = 1, kBlockBytes = 66, kStepBytes = 2 * 66;

  void Unpack(const uint8_t* p, const float* d, WeightUnit<8>* unit) const {
    const Vec a = Load(p + 2), b = Load(p + 68);
    const Vec index = _mm512_permutex2var_epi32(a, Load(kEvenDwords), b);
    const Vec words = _mm512_permutex2var_epi32(a, Load(kOddDwords), b);
    const IndexMasks masks(index);
    const Vec seven = _mm512_multishift_epi64_epi8(Load(kSignBit0), words);
    DecodePlanes(low_.Lookup(index, masks), Affine<0>(seven, kLowSigns), unit->w);
    DecodePlanes(high_.Lookup(index, masks), Affine<0>(seven, kHighSigns), unit->w + 4);
    unit->scale =
        OddScales(_mm512_srli_epi32(words, 28),
                  _mm512_mask_blend_ps(0xff00, _mm512_set1_ps(d[0]), _mm512_set1_ps(d[1])));
  }

 private:
  // Each block is eight pairs of dwords (indices, signs and scale); blocks one behind the other.
  static constexpr Dwords kEvenDwords =
      MakeDwords([](int n) { return n < 8 ? 2 * n : 16 + 2 * (n - 8); });
  static constexpr Dwords kOddDwords =
      MakeDwords([](int n) { return (n < 8 ? 2 * n : 16 + 2 * (n - 8)) + 1; });
  static constexpr Bytes kSignBit0 =
      MakeBytes([](int n) { return 32 * (n / 4 % 2) + 7 * (n % 4); });
  static constexpr int64_t kLowSigns = SevenSigns(0, {4, 5, 0, 2, 1, 3, 6, 7});
  static constexpr int64_t kHighSigns = SevenSigns(0, {0, 1, 4, 6, 5, 7, 2, 3});

  Table<4> low_{Grids().iq2_xxs_low}, high_{Grids().iq2_xxs_high};
};

// A byte of signs with those of each half in the order of DecodePlanes.
constexpr int kHalvesOrder[8] = {0, 2, 1, 3, 4, 6, 5, 7};

class Iq2Xs : public Iq2 {
 public:
  static constexpr int kVectors = 4, kStepUnits = 2, kBlockBytes = 74, kStepBytes = 2 * 74;

  void Unpack(const uint8_t* p, const float* d, WeightUnit<4>* units) const {
    const Vec q[2] = {Load(p + 2), Load(p + 76)};
    // The blocks take turns: the low bytes of their words, and the high ones.
    const Vec index = _mm512_mask_loadu_epi8(q[0], kOddBytes, p + 75);
    const Vec upper = _mm512_mask_loadu_epi8(q[1], kEvenBytes, p + 3);
    const IndexMasks masks(index);
    const Vec signs = Affine<0>(upper, SevenSigns(1, kHalvesOrder));
    const __mmask64 bit8 = _mm512_test_epi8_mask(upper, _mm512_set1_epi8(1));
    const Vec low = low_.Lookup(index, masks, bit8), high = high_.Lookup(index, masks, bit8);
    // Byte 2 c + h of a block's codes is half h of group c.
    const Vec codes[2] = {_mm512_mask_blend_epi8(kOddBytes, low, _mm512_slli_epi16(high, 8)),
                          _mm512_mask_blend_epi8(kOddBytes, _mm512_srli_epi16(low, 8), high)};
#pragma GCC unroll 2
    for (int h = 0; h < 2; ++h) {
      DecodePlanes(codes[h], _mm512_multishift_epi64_epi8(Load(kSignsOfHalf[h]), signs),
                   units[h].w);
      units[h].scale = NibbleScales(p + 74 * h + 66, d[h]);
    }
  }

 private:
  static constexpr __mmask64 kEvenBytes = 0x5555555555555555, kOddBytes = ~kEvenBytes;
  // Per block: four bits of the sign byte of group c, for half h, to bit 2.
  static constexpr Bytes kSignsOfHalf[2] = {
      MakeBytes([](int n) { return (16 * (n / 2 % 4) + 4 * (n % 2) - 2) & 63; }),
      MakeBytes([](int n) { return 16 * (n / 2 % 4) + 8 + 4 * (n % 2) - 2; })};

  Table<8> low_{Grids().iq2_xs_low}, high_{Grids().iq2_xs_high};
};

class Iq2S : public Iq2 {
 public:
  static constexpr int kVectors = 4, kStepUnits = 2, kBlockBytes = 82, kStepBytes = 2 * 82;

  void Unpack(const uint8_t* p, const float* d, WeightUnit<4>* units) const {
    // 128-bit lane L: groups 8 L .. 8 L + 7 of the first block, then those of the second.
    const Vec index = TwoBlocks(p + 2, p + 84);
    const Vec qh =
        _mm512_mask_blend_epi64(0xaa, _mm512_set1_epi64(static_cast<int64_t>(Load64(p + 66))),
                                _mm512_set1_epi64(static_cast<int64_t>(Load64(p + 148))));
    const Vec upper = _mm512_multishift_epi64_epi8(Load(kUpperBits), qh);
    const __mmask64 bit8 = _mm512_movepi8_mask(_mm512_add_epi8(upper, upper));
    const __mmask64 bit9 = _mm512_movepi8_mask(upper);
    const IndexMasks masks(index);
    const Vec low = Lookup1024(grids_->iq2_s_low, index, masks, bit8, bit9);
    const Vec high = Lookup1024(grids_->iq2_s_high, index, masks, bit8, bit9);
    // Byte 2 c + h of a block's codes is half h of group c.
    const Vec codes[2] = {_mm512_unpacklo_epi8(low, high), _mm512_unpackhi_epi8(low, high)};
#pragma GCC unroll 2
    for (int h = 0; h < 2; ++h) {
      const uint8_t* block = p + 82 * h;
      const Vec four =
          _mm512_cvtepu32_epi64(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(block + 34)));
      const Vec signs = Affine<0>(four, EightSigns(kHalvesOrder));
      DecodePlanes(codes[h], _mm512_multishift_epi64_epi8(Load(kSignsOfHalf), signs), units[h].w);
      units[h].scale = NibbleScales(block + 74, d[h]);
    }
  }

 private:
  // The two bits of group 8 (n / 16) + n % 8, to bits 6 and 7.
  static constexpr Bytes kUpperBits =
      MakeBytes([](int n) { return (2 * (8 * (n / 16) + n % 8) - 6) & 63; });
  static constexpr Bytes kSignsOfHalf = MakeBytes([](int n) { return (4 * (n % 8) - 2) & 63; });

  const GridTables* grids_ = &Grids();
};

}  // namespace

const WeightKernel kIq2XxsAvx512 = {kLayoutGridPair, GridPairBytesAvx512, PrepareGridPairAvx512,
                                    MatMul<Iq2Xxs>};
const WeightKernel kIq2XsAvx512 = {kLayoutGrid, GridBytesAvx512, PrepareGridAvx512, MatMul<Iq2Xs>};
const WeightKernel kIq2SAvx512 = {kLayoutGrid, GridBytesAvx512, PrepareGridAvx512, MatMul<Iq2S>};

}  // namespace packtrain

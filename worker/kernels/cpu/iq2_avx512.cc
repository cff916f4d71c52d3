// IQ2_XXS, IQ2_XS, IQ2_S.
//
// The grids stay in registers as 2-bit codes: vpermi2b looks 64 indices up in 128 entries at a
// time, and one vgf2p8affineqb per plane turns a field of the code bytes into weights: three levels
// differ from the first by two patterns of flipped bits, one per code bit. (A vpermb would do too,
// but on Intel's cores lookups already fill the one port that permutes.) Weights carry an offset of
// 64, so signs are a masked subtraction from 128 and the dot product has an unsigned operand.

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "worker/kernels/cpu/activations_avx512.h"
#include "worker/kernels/cpu/grid_tables.h"
#include "worker/kernels/cpu/variants.h"

namespace packtrain {
namespace {

#include "worker/kernels/cpu/grid_avx512.inc"

// Planes 0..3 of code bytes: field v of each. The levels 8, 25, 43 with offset 64.
inline void DecodePlanes(Vec codes, Vec* w) {
  constexpr int kFlips[2] = {72 ^ 89, 72 ^ 107};
  w[0] = Affine<72>(codes, FieldMatrix(0, kFlips));
  w[1] = Affine<72>(codes, FieldMatrix(2, kFlips));
  w[2] = Affine<72>(codes, FieldMatrix(4, kFlips));
  w[3] = Affine<72>(codes, FieldMatrix(6, kFlips));
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
    DecodePlanes(low_.Lookup(index), unit->w);
    DecodePlanes(high_.Lookup(index), unit->w + 4);
    const Vec seven = _mm512_multishift_epi64_epi8(Load(kSignBit0), words);
    const Vec signs = Affine<0>(seven, EvenSigns(0));
#pragma GCC unroll 7
    for (int v = 0; v < 7; ++v) {
      const Vec bit = _mm512_set1_epi8(static_cast<char>(1 << v));
      unit->w[v] = Negate(unit->w[v], _mm512_test_epi8_mask(signs, bit));
    }
    unit->w[7] = Negate(unit->w[7], _mm512_movepi8_mask(signs));
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

  Table<4> low_{Grids().iq2_xxs_low}, high_{Grids().iq2_xxs_high};
};

// Groups of eight of two blocks in one vector of bytes: 128-bit lane L has groups 8 L .. 8 L + 7 of
// the first block, then those of the second. Interleaving low and high code bytes by lanes then
// gives, per block, byte 2 c + h = half h of group c.
inline void DecodeTwoBlocks(Vec low, Vec high, Vec* w0, Vec* w1) {
  DecodePlanes(_mm512_unpacklo_epi8(low, high), w0);
  DecodePlanes(_mm512_unpackhi_epi8(low, high), w1);
}

class Iq2Xs : public Iq2 {
 public:
  static constexpr int kVectors = 4, kStepUnits = 2, kBlockBytes = 74, kStepBytes = 2 * 74;

  void Unpack(const uint8_t* p, const float* d, WeightUnit<4>* units) const {
    const Vec q[2] = {Load(p + 2), Load(p + 76)};
    // Packing interleaves the two blocks by lanes, as DecodeTwoBlocks expects.
    const Vec low_byte = _mm512_set1_epi16(255);
    const Vec index =
        _mm512_packus_epi16(_mm512_and_si512(q[0], low_byte), _mm512_and_si512(q[1], low_byte));
    const __mmask64 bit8 = _mm512_movepi8_mask(
        _mm512_packs_epi16(_mm512_slli_epi16(q[0], 7), _mm512_slli_epi16(q[1], 7)));
    DecodeTwoBlocks(low_.Lookup(index, bit8), high_.Lookup(index, bit8), units[0].w, units[1].w);
#pragma GCC unroll 2
    for (int h = 0; h < 2; ++h) {
      const uint8_t* block = p + 74 * h;
      // The byte with a group's signs is the odd one of its word; a load one byte on puts it into
      // the even one too.
      const Vec twice = _mm512_mask_loadu_epi8(q[h], 0x5555555555555555, block + 3);
      NegateHalves(Affine<0>(twice, EvenSigns(1)), units[h].w);
      units[h].scale = NibbleScales(block + 66, d[h]);
    }
  }

 private:
  Table<8> low_{Grids().iq2_xs_low}, high_{Grids().iq2_xs_high};
};

class Iq2S : public Iq2 {
 public:
  static constexpr int kVectors = 4, kStepUnits = 2, kBlockBytes = 82, kStepBytes = 2 * 82;

  void Unpack(const uint8_t* p, const float* d, WeightUnit<4>* units) const {
    const Vec index = TwoBlocks(p + 2, p + 84);
    // qh has two bits per group; qword 2 L of `high` serves the first block, 2 L + 1 the second.
    const Vec high =
        _mm512_mask_blend_epi64(0xaa, _mm512_set1_epi64(static_cast<int64_t>(Load64(p + 66))),
                                _mm512_set1_epi64(static_cast<int64_t>(Load64(p + 148))));
    const IndexBits bits{_mm512_movepi8_mask(index),
                         _mm512_bitshuffle_epi64_mask(high, Load(kBit8)),
                         _mm512_bitshuffle_epi64_mask(high, Load(kBit9))};
    Vec low_codes, high_codes;
    Lookup1024<1>(grids_->iq2_s_low, &index, &bits, &low_codes);
    Lookup1024<1>(grids_->iq2_s_high, &index, &bits, &high_codes);
    DecodeTwoBlocks(low_codes, high_codes, units[0].w, units[1].w);
#pragma GCC unroll 2
    for (int h = 0; h < 2; ++h) {
      const uint8_t* block = p + 82 * h;
      NegateHalves(Twice(block + 34), units[h].w);
      units[h].scale = NibbleScales(block + 74, d[h]);
    }
  }

 private:
  static constexpr Bytes kBit8 = MakeBytes([](int n) { return 2 * (8 * (n / 16) + n % 8); });
  static constexpr Bytes kBit9 = MakeBytes([](int n) { return 2 * (8 * (n / 16) + n % 8) + 1; });

  const GridTables* grids_ = &Grids();
};

}  // namespace

const WeightKernel kIq2XxsAvx512 = {kLayoutGridPair, GridPairBytesAvx512, PrepareGridPairAvx512,
                                    MatMul<Iq2Xxs>};
const WeightKernel kIq2XsAvx512 = {kLayoutGrid, GridBytesAvx512, PrepareGridAvx512, MatMul<Iq2Xs>};
const WeightKernel kIq2SAvx512 = {kLayoutGrid, GridBytesAvx512, PrepareGridAvx512, MatMul<Iq2S>};

}  // namespace packtrain

// IQ2_XXS, IQ2_XS, IQ2_S.
//
// The grids stay in registers as 2-bit codes: vpermi2b looks 64 indices up in 128 entries at a
// time, and one vpermb per plane turns a field of the code bytes into weights, since it reads only
// six bits of its index and its table repeats over the others. Weights carry an offset of 64, so
// signs are a masked subtraction from 128 and the dot product has an unsigned operand.

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "worker/kernels/cpu/activations_avx512.h"
#include "worker/kernels/cpu/grid_tables.h"
#include "worker/kernels/cpu/variants.h"

namespace packtrain {
namespace {

#include "worker/kernels/cpu/grid_avx512.inc"
constexpr Bytes LevelTable(int field) {
  constexpr int kLevels[4] = {64 + 8, 64 + 25, 64 + 43, 0};
  return MakeBytes([&](int n) { return kLevels[n >> (2 * field) & 3]; });
}
constexpr Bytes kLevels0 = LevelTable(0), kLevels1 = LevelTable(1), kLevels2 = LevelTable(2);

// Planes 0..3 of code bytes: field v of each.
struct Planes {
  Vec table0 = Load(kLevels0), table1 = Load(kLevels1), table2 = Load(kLevels2);

  void Decode(Vec codes, Vec* w) const {
    w[0] = _mm512_permutexvar_epi8(codes, table0);
    w[1] = _mm512_permutexvar_epi8(codes, table1);
    w[2] = _mm512_permutexvar_epi8(codes, table2);
    w[3] = _mm512_permutexvar_epi8(_mm512_srli_epi16(codes, 6), table0);
  }
};

inline Vec Negate(Vec w, __mmask64 negative) {
  return _mm512_mask_sub_epi8(w, negative, _mm512_set1_epi8(static_cast<char>(128)), w);
}

// The 16 scales 2 s + 1 of eight bytes of nibbles, one per 32-bit lane.
constexpr Bytes kNibbleToLane =
    MakeBytes([](int n) { return (8 * (n / 8) - 1 + 4 * (n / 4 % 2)) & 63; });

inline Vec OddScales(const uint8_t* nibbles) {
  const Vec all = _mm512_set1_epi64(static_cast<int64_t>(Load64(nibbles)));
  return Odd(_mm512_multishift_epi64_epi8(Load(kNibbleToLane), all));
}

struct Iq2 {
  static constexpr int kBlockWeights = 256;
  static constexpr bool kMins = false;
  static constexpr float kResultScale = 0.125f;
  static Vec Init(Vec init) { return init; }
};

class Iq2Xxs : public Iq2 {
 public:
  static constexpr int kVectors = 8, kStepUnits = 1, kBlockBytes = 66, kStepBytes = 2 * 66;

  void Unpack(const uint8_t* p, WeightUnit<8>* unit) const {
    const Vec a = Load(p + 2), b = Load(p + 68);
    const Vec index = _mm512_permutex2var_epi32(a, Load(kEvenDwords), b);
    const Vec words = _mm512_permutex2var_epi32(a, Load(kOddDwords), b);
    planes_.Decode(low_.Lookup(index), unit->w);
    planes_.Decode(high_.Lookup(index), unit->w + 4);
#pragma GCC unroll 7
    for (int v = 0; v < 7; ++v) {
      const Vec bit = _mm512_add_epi8(Load(kSignBit0), _mm512_set1_epi8(static_cast<char>(v)));
      unit->w[v] = Negate(unit->w[v], _mm512_bitshuffle_epi64_mask(words, bit));
    }
    const Vec seven = _mm512_multishift_epi64_epi8(Load(kSignBit0), words);
    const Vec eight = _mm512_gf2p8affine_epi64_epi8(seven, _mm512_set1_epi64(EvenSigns(0)), 0);
    unit->w[7] = Negate(unit->w[7], _mm512_movepi8_mask(eight));
    const __m512 d = _mm512_mask_blend_ps(0xff00, HalfToVector(p), HalfToVector(p + 66));
    unit->scale = LaneScales(Odd(_mm512_srli_epi32(words, 27)), d);
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
  Planes planes_;
};

// Groups of eight of two blocks in one vector of bytes: 128-bit lane L has groups 8 L .. 8 L + 7 of
// the first block, then those of the second. Interleaving low and high code bytes by lanes then
// gives, per block, byte 2 c + h = half h of group c.
inline void DecodeTwoBlocks(const Planes& planes, Vec low, Vec high, Vec* w0, Vec* w1) {
  planes.Decode(_mm512_unpacklo_epi8(low, high), w0);
  planes.Decode(_mm512_unpackhi_epi8(low, high), w1);
}

// Where the 16-bit word of that order's group n lies in two blocks' 64 bytes of words each.
constexpr int GroupWord(int n) {
  const int lane = n / 16, byte = n % 16;
  return (byte < 8 ? 0 : 64) + 2 * (8 * lane + byte % 8);
}

class Iq2Xs : public Iq2 {
 public:
  static constexpr int kVectors = 4, kStepUnits = 2, kBlockBytes = 74, kStepBytes = 2 * 74;

  void Unpack(const uint8_t* p, WeightUnit<4>* units) const {
    const Vec q[2] = {Load(p + 2), Load(p + 76)};
    const Vec index = _mm512_permutex2var_epi8(q[0], Load(kEvenBytes), q[1]);
    const Vec odd = _mm512_permutex2var_epi8(q[0], Load(kOddBytes), q[1]);
    const __mmask64 bit8 = _mm512_test_epi8_mask(odd, _mm512_set1_epi8(1));
    DecodeTwoBlocks(planes_, low_.Lookup(index, bit8), high_.Lookup(index, bit8), units[0].w,
                    units[1].w);
    for (int h = 0; h < 2; ++h) {
      // The sign bytes end up in the odd bytes.
      const Vec signs = _mm512_gf2p8affine_epi64_epi8(q[h], _mm512_set1_epi64(EvenSigns(1)), 0);
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v) {
        const Vec bit = _mm512_add_epi8(Load(kSignBit0), _mm512_set1_epi8(static_cast<char>(v)));
        units[h].w[v] = Negate(units[h].w[v], _mm512_bitshuffle_epi64_mask(signs, bit));
      }
      units[h].scale = LaneScales(OddScales(p + 74 * h + 66), HalfToVector(p + 74 * h));
    }
  }

 private:
  static constexpr Bytes kEvenBytes = MakeBytes([](int n) { return GroupWord(n); });
  static constexpr Bytes kOddBytes = MakeBytes([](int n) { return GroupWord(n) + 1; });
  static constexpr Bytes kSignBit0 =
      MakeBytes([](int n) { return 16 * (n / 2 % 4) + 8 + 4 * (n % 2); });

  Table<8> low_{Grids().iq2_xs_low}, high_{Grids().iq2_xs_high};
  Planes planes_;
};

class Iq2S : public Iq2 {
 public:
  static constexpr int kVectors = 4, kStepUnits = 2, kBlockBytes = 82, kStepBytes = 2 * 82;

  void Unpack(const uint8_t* p, WeightUnit<4>* units) const {
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
    DecodeTwoBlocks(planes_, low_codes, high_codes, units[0].w, units[1].w);
    for (int h = 0; h < 2; ++h) {
      const uint8_t* block = p + 82 * h;
      const Vec signs =
          _mm512_cvtepu32_epi64(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(block + 34)));
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v) {
        const Vec bit = _mm512_add_epi8(Load(kSignBit0), _mm512_set1_epi8(static_cast<char>(v)));
        units[h].w[v] = Negate(units[h].w[v], _mm512_bitshuffle_epi64_mask(signs, bit));
      }
      units[h].scale = LaneScales(OddScales(block + 74), HalfToVector(block));
    }
  }

 private:
  static constexpr Bytes kBit8 = MakeBytes([](int n) { return 2 * (8 * (n / 16) + n % 8); });
  static constexpr Bytes kBit9 = MakeBytes([](int n) { return 2 * (8 * (n / 16) + n % 8) + 1; });
  static constexpr Bytes kSignBit0 = MakeBytes([](int n) { return 8 * (n / 2 % 4) + 4 * (n % 2); });

  const GridTables* grids_ = &Grids();
  Planes planes_;
};

}  // namespace

const WeightKernel kIq2XxsAvx512 = {kLayoutGridPair, GridPairBytesAvx512, PrepareGridPairAvx512,
                                    MatMul<Iq2Xxs>};
const WeightKernel kIq2XsAvx512 = {kLayoutGrid, GridBytesAvx512, PrepareGridAvx512, MatMul<Iq2Xs>};
const WeightKernel kIq2SAvx512 = {kLayoutGrid, GridBytesAvx512, PrepareGridAvx512, MatMul<Iq2S>};

}  // namespace packtrain

// IQ3_XXS, IQ3_S. As iq2_avx512.cc with 3-bit codes: `low` holds elements 0 and 1 of an entry,
// `high` elements 2 and 3, and the 64 index bytes of a block are already in the order of its
// weights.

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "worker/kernels/cpu/activations_avx512.h"
#include "worker/kernels/cpu/grid_tables.h"
#include "worker/kernels/cpu/variants.h"

namespace packtrain {
namespace {

#include "worker/kernels/cpu/grid_avx512.inc"
constexpr Bytes LevelTable(const int (&levels)[8], int field) {
  return MakeBytes([&](int n) { return 64 + levels[n >> (3 * field) & 7]; });
}
constexpr int kXxsLevels[8] = {4, 12, 20, 28, 36, 44, 52, 62};
constexpr int kSLevels[8] = {1, 3, 5, 7, 9, 11, 13, 15};
constexpr Bytes kXxs0 = LevelTable(kXxsLevels, 0), kXxs1 = LevelTable(kXxsLevels, 1);
constexpr Bytes kS0 = LevelTable(kSLevels, 0), kS1 = LevelTable(kSLevels, 1);

// Byte n is the first sign bit of quad n in the sign bytes of its sub-block (a qword each).
constexpr Bytes kSignBit0 = MakeBytes([](int n) { return 8 * (n / 2 % 4) + 4 * (n % 2); });

struct Iq3 {
  static constexpr int kBlockWeights = 256;
  static constexpr int kVectors = 4, kStepUnits = 1;
  static constexpr bool kMins = false;
  static Vec Init(Vec init) { return init; }

  // Planes of the code bytes with the signs of `signs`.
  static void Decode(Vec low, Vec high, Vec table0, Vec table1, Vec signs, Vec* w) {
    w[0] = _mm512_permutexvar_epi8(low, table0);
    w[1] = _mm512_permutexvar_epi8(low, table1);
    w[2] = _mm512_permutexvar_epi8(high, table0);
    w[3] = _mm512_permutexvar_epi8(high, table1);
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) {
      const Vec bit = _mm512_add_epi8(Load(kSignBit0), _mm512_set1_epi8(static_cast<char>(v)));
      w[v] = _mm512_mask_sub_epi8(w[v], _mm512_bitshuffle_epi64_mask(signs, bit),
                                  _mm512_set1_epi8(static_cast<char>(128)), w[v]);
    }
  }
};

class Iq3Xxs : public Iq3 {
 public:
  static constexpr int kBlockBytes = 98, kStepBytes = 98;
  static constexpr float kResultScale = 0.25f;

  void Unpack(const uint8_t* p, WeightUnit<4>* unit) const {
    const Vec index = Load(p + 2);
    const Vec words =
        _mm512_cvtepu32_epi64(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 66)));
    const Vec seven = _mm512_multishift_epi64_epi8(Load(kSevenBits), words);
    const Vec signs = _mm512_gf2p8affine_epi64_epi8(seven, _mm512_set1_epi64(EvenSigns(0)), 0);
    Decode(low_.Lookup(index), high_.Lookup(index), table0_, table1_, signs, unit->w);
    const Vec scales = _mm512_multishift_epi64_epi8(_mm512_set1_epi8(27), words);
    unit->scale = LaneScales(Odd(scales), HalfToVector(p));
  }

 private:
  static constexpr Bytes kSevenBits = MakeBytes([](int n) { return 7 * (n % 4); });

  Table<4> low_{Grids().iq3_xxs_low}, high_{Grids().iq3_xxs_high};
  Vec table0_ = Load(kXxs0), table1_ = Load(kXxs1);
};

class Iq3S : public Iq3 {
 public:
  static constexpr int kBlockBytes = 110, kStepBytes = 110;
  static constexpr float kResultScale = 1.0f;

  void Unpack(const uint8_t* p, WeightUnit<4>* unit) const {
    const Vec index = Load(p + 2);
    const __mmask64 bit8 = Load64(p + 66);
    const Vec signs =
        _mm512_cvtepu32_epi64(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 74)));
    Decode(low_.Lookup(index, bit8), high_.Lookup(index, bit8), table0_, table1_, signs, unit->w);
    const Vec nibbles = _mm512_set1_epi32(static_cast<int>(Load32(p + 106)));
    const Vec scales = _mm512_multishift_epi64_epi8(Load(kNibbleToLane), nibbles);
    unit->scale = LaneScales(Odd(scales), HalfToVector(p));
  }

 private:
  // A nibble per 32 weights, so per two lanes.
  static constexpr Bytes kNibbleToLane = MakeBytes([](int n) { return (4 * (n / 8) - 1) & 63; });

  Table<8> low_{Grids().iq3_s_low}, high_{Grids().iq3_s_high};
  Vec table0_ = Load(kS0), table1_ = Load(kS1);
};

}  // namespace

const WeightKernel kIq3XxsAvx512 = {kLayoutGrid, GridBytesAvx512, PrepareGridAvx512,
                                    MatMul<Iq3Xxs>};
const WeightKernel kIq3SAvx512 = {kLayoutGrid, GridBytesAvx512, PrepareGridAvx512, MatMul<Iq3S>};

}  // namespace packtrain

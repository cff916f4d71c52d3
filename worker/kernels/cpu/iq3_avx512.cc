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

struct Iq3 {
  static constexpr int kBlockWeights = 256;
  static constexpr int kVectors = 4, kStepUnits = 1;
  static constexpr bool kMins = false;
  static constexpr int kScaleAt = 0;
  static Vec Init(Vec init) { return init; }
};

class Iq3Xxs : public Iq3 {
 public:
  static constexpr int kBlockBytes = 98, kStepBytes = 98;
  static constexpr float kResultScale = 0.25f;

  void Unpack(const uint8_t* p, const float* d, WeightUnit<4>* unit) const {
    const Vec index = Load(p + 2);
    const Vec low = low_.Lookup(index), high = high_.Lookup(index);
    unit->w[0] = Affine<68>(low, kFirst);
    unit->w[1] = Affine<68>(low, kSecond);
    unit->w[2] = Affine<68>(high, kFirst);
    unit->w[3] = Affine<68>(high, kSecond);
    const Vec words =
        _mm512_cvtepu32_epi64(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 66)));
    const Vec seven = _mm512_multishift_epi64_epi8(Load(kSevenBits), words);
    NegateHalves(Affine<0>(seven, EvenSigns(0)), unit->w);
    const Vec scales = _mm512_multishift_epi64_epi8(_mm512_set1_epi8(28), words);
    unit->scale = OddScales(scales, _mm512_set1_ps(d[0]));
  }

 private:
  // Byte 2 c + h: the sign bits of pair c of quads.
  static constexpr Bytes kSevenBits = MakeBytes([](int n) { return 7 * (n / 2 % 4); });
  // The levels 4 + 8 code, but 62 for the last, which the table's bits 6 and 7 mark.
  static constexpr int64_t kFirst = FieldMatrix(0, {8, 16, 32, 0, 0, 0, 2});
  static constexpr int64_t kSecond = FieldMatrix(3, {8, 16, 32, 0, 2});

  Table<4> low_{Grids().iq3_xxs_low}, high_{Grids().iq3_xxs_high};
};

class Iq3S : public Iq3 {
 public:
  static constexpr int kBlockBytes = 110, kStepBytes = 110;
  static constexpr float kResultScale = 1.0f;

  void Unpack(const uint8_t* p, const float* d, WeightUnit<4>* unit) const {
    const Vec index = Load(p + 2);
    const __mmask64 bit8 = Load64(p + 66);
    const Vec low = low_.Lookup(index, bit8), high = high_.Lookup(index, bit8);
    unit->w[0] = Affine<65>(low, kFirst);
    unit->w[1] = Affine<65>(low, kSecond);
    unit->w[2] = Affine<65>(high, kFirst);
    unit->w[3] = Affine<65>(high, kSecond);
    NegateHalves(Twice(p + 74), unit->w);
    const Vec nibbles = _mm512_set1_epi32(static_cast<int>(Load32(p + 106)));
    const Vec scales = _mm512_multishift_epi64_epi8(Load(kNibbleToLane), nibbles);
    unit->scale = OddScales(scales, _mm512_set1_ps(d[0]));
  }

 private:
  // A nibble per 32 weights, so per two lanes.
  static constexpr Bytes kNibbleToLane = MakeBytes([](int n) { return 4 * (n / 8); });
  // The levels 1 + 2 code.
  static constexpr int64_t kFirst = FieldMatrix(0, {2, 4, 8});
  static constexpr int64_t kSecond = FieldMatrix(3, {2, 4, 8});

  Table<8> low_{Grids().iq3_s_low}, high_{Grids().iq3_s_high};
};

}  // namespace

const WeightKernel kIq3XxsAvx512 = {kLayoutGrid, GridBytesAvx512, PrepareGridAvx512,
                                    MatMul<Iq3Xxs>};
const WeightKernel kIq3SAvx512 = {kLayoutGrid, GridBytesAvx512, PrepareGridAvx512, MatMul<Iq3S>};

}  // namespace packtrain

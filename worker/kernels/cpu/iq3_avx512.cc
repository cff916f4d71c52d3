// IQ3_XXS, IQ3_S. As iq2_avx512.cc with 3-bit codes: `low` holds elements 0 and 1 of an entry,
// `high` elements 2 and 3, and the 64 index bytes of a block are already in the order of its
// weights.

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
    const IndexMasks masks(index);
    const Vec low = low_.Lookup(index, masks), high = high_.Lookup(index, masks);
    // The block's last eight dwords, each twice: four fields of seven sign bits and a scale.
    const Vec words = _mm512_permutexvar_epi32(Load(kLastDwords), Load(p + 34));
    const Vec seven = _mm512_multishift_epi64_epi8(Load(kSevenBits), words);
    const Vec signs = _mm512_multishift_epi64_epi8(
        Load(kSignsOfHalf), Affine<0>(seven, SevenSigns(0, {1, 3, 0, 2, 5, 7, 4, 6})));
    const Vec first = _mm512_set1_epi8(0x07), second = _mm512_set1_epi8(0x38);
    unit->w[0] = _mm512_permutexvar_epi8(Select(first, low, signs), Load(kLevels0));
    unit->w[1] = _mm512_permutexvar_epi8(Select(second, low, signs), Load(kLevels1));
    unit->w[2] = _mm512_permutexvar_epi8(Select(first, high, signs), Load(kLevels2));
    unit->w[3] = _mm512_permutexvar_epi8(Select(second, high, signs), Load(kLevels3));
    unit->scale = OddScales(_mm512_srli_epi32(words, 28), _mm512_set1_ps(d[0]));
  }

 private:
  static constexpr Dwords kLastDwords = MakeDwords([](int n) { return 8 + n / 2; });
  static constexpr Bytes kSevenBits = MakeBytes([](int n) { return 7 * (n % 4); });
  // The signs of a quad's elements 1, 3, 0 and 2, to bits 1..4.
  static constexpr Bytes kSignsOfHalf = MakeBytes([](int n) { return (4 * (n % 8) - 1) & 63; });

  static constexpr Bytes kLevels0 = SignedLevels<3>(kIq3XxsLevels, 0, 3),
                         kLevels1 = SignedLevels<3>(kIq3XxsLevels, 3, 1),
                         kLevels2 = SignedLevels<3>(kIq3XxsLevels, 0, 4),
                         kLevels3 = SignedLevels<3>(kIq3XxsLevels, 3, 2);

  Table<4> low_{Grids().iq3_xxs_low}, high_{Grids().iq3_xxs_high};
};

// Bits 1..3 of a weight are its code's, all flipped, with those up to the offset's, by the sign.
constexpr int64_t WeightMatrix(int code, int sign) {
  int rows[8] = {};
  for (int bit = 1; bit <= 6; ++bit) {
    rows[bit] = 1 << sign | (bit <= 3 ? 1 << (code + bit - 1) : 0);
  }
  return BitMatrix(rows);
}
class Iq3S : public Iq3 {
 public:
  static constexpr int kBlockBytes = 110, kStepBytes = 110;
  static constexpr float kResultScale = 1.0f;

  void Unpack(const uint8_t* p, const float* d, WeightUnit<4>* unit) const {
    const Vec index = Load(p + 2);
    const IndexMasks masks(index);
    const __mmask64 bit8 = Load64(p + 66);
    const Vec words =
        _mm512_cvtepu32_epi64(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 74)));
    const Vec signs = _mm512_multishift_epi64_epi8(Load(kSignsOfQuad), words);
    // Levels 1 + 2 code differ by flipped bits and so do their negatives, with offset 64: bits 6
    // and 7 of the code bytes take the signs.
    const Vec codes = _mm512_set1_epi8(0x3f);
    const Vec low = Select(codes, low_.Lookup(index, masks, bit8), _mm512_slli_epi16(signs, 2));
    const Vec high = Select(codes, high_.Lookup(index, masks, bit8), signs);
    unit->w[0] = Affine<65>(low, kFirst);
    unit->w[1] = Affine<65>(low, kSecond);
    unit->w[2] = Affine<65>(high, kFirst);
    unit->w[3] = Affine<65>(high, kSecond);
    const Vec nibbles = _mm512_set1_epi32(static_cast<int>(Load32(p + 106)));
    unit->scale = OddScales(_mm512_srlv_epi32(nibbles, Load(kNibbleToLane)), _mm512_set1_ps(d[0]));
  }

 private:
  // A quad's four signs, to bits 4..7.
  static constexpr Bytes kSignsOfQuad = MakeBytes([](int n) { return (4 * (n % 8) - 4) & 63; });
  // A nibble per 32 weights, so per two lanes.
  static constexpr Dwords kNibbleToLane = MakeDwords([](int n) { return 4 * (n / 2); });

  static constexpr int64_t kFirst = WeightMatrix(0, 6), kSecond = WeightMatrix(3, 7);

  Table<8> low_{Grids().iq3_s_low}, high_{Grids().iq3_s_high};
};

}  // namespace

const WeightKernel kIq3XxsAvx512 = {kLayoutGrid, GridBytesAvx512, PrepareGridAvx512,
                                    MatMul<Iq3Xxs>};
const WeightKernel kIq3SAvx512 = {kLayoutGrid, GridBytesAvx512, PrepareGridAvx512, MatMul<Iq3S>};

}  // namespace packtrain

// IQ3_XXS, IQ3_S, as iq2_avx2.cc with entries of four weights.

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "worker/kernels/cpu/activations_avx2.h"
#include "worker/kernels/cpu/grid_tables.h"
#include "worker/kernels/cpu/variants.h"

namespace packtrain {
namespace {

#include "worker/kernels/cpu/grid_avx2.inc"
struct Iq3 {
  static constexpr bool kMins = false, kSigned = false, kSums8 = false, kOpenAhead = true;
  static constexpr int kGroupQuads = 8, kWordQuads = 1;
};

class Iq3Xxs : public Iq3 {
 public:
  static constexpr size_t kBlockBytes = 98;
  static constexpr float kResultScale = 0.25f;

  void Open(const uint8_t* p, Header* h) const {
    const Vec words = Load(p + 66);
    _mm256_store_si256(reinterpret_cast<__m256i*>(h->signs), SignBytes(words));
    SetScales(WordScales(words), h);
    h->d = LoadHalf(p);
  }

  Vec Weights(const uint8_t* p, const Header& h, int b) const {
    const uint64_t index = Load64(p + 2 + 8 * b);
    return ApplySigns(EightSpread<8>(grid_, index, index >> 32), SignsOf(h, b), SpreadBytes());
  }

 private:
  const uint8_t* grid_ = Grids().iq3_xxs_spread.first();
};

class Iq3S : public Iq3 {
 public:
  static constexpr size_t kBlockBytes = 110;
  static constexpr float kResultScale = 1.0f;

  void Open(const uint8_t* p, Header* h) const {
    const Vec shifts = _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28);
    const Vec nibbles =
        _mm256_srlv_epi32(_mm256_set1_epi32(static_cast<int>(Load32(p + 106))), shifts);
    SetScales(WordScales(_mm256_slli_epi32(nibbles, 28)), h);
    h->d = LoadHalf(p);
    // Bit n of a byte of qh is bit 8 of index n.
    const Vec to_words = _mm256_setr_epi64x(kFirst, kFirst, kSecond, kSecond);
    const Vec to_bit8 = _mm256_broadcastsi128_si256(
        _mm_setr_epi16(1 << 8, 1 << 7, 1 << 6, 1 << 5, 1 << 4, 1 << 3, 1 << 2, 1 << 1));
#pragma GCC unroll 4
    for (int i = 0; i < 64; i += 16) {
      const Vec index = _mm256_cvtepu8_epi16(Load128(p + 2 + i));
      uint16_t two;
      __builtin_memcpy(&two, p + 66 + i / 8, sizeof two);
      const Vec high = _mm256_mullo_epi16(
          _mm256_shuffle_epi8(_mm256_set1_epi16(static_cast<int16_t>(two)), to_words), to_bit8);
      StoreIndex(h, i, _mm256_or_si256(index, _mm256_and_si256(high, _mm256_set1_epi16(1 << 8))));
    }
  }

  Vec Weights(const uint8_t* p, const Header& h, int b) const {
    return ApplySigns(EightSpread<16>(grid_, Load64(h.index + 8 * b), Load64(h.index + 8 * b + 4)),
                      _mm256_set1_epi32(static_cast<int>(Load32(p + 74 + 4 * b))), SpreadBytes());
  }

 private:
  // Shuffles: byte 0, or 1, of each word, with zero above.
  static constexpr int64_t kFirst = static_cast<int64_t>(0x8000800080008000);
  static constexpr int64_t kSecond = static_cast<int64_t>(0x8001800180018001);

  const uint8_t* grid_ = Grids().iq3_s_spread.first();
};

}  // namespace

const WeightKernel kIq3XxsAvx2 = {kLayoutStep256, UnitBytesAvx2, PrepareStep256Avx2, MatMul<Iq3Xxs>,
                                  kPanelRows};
const WeightKernel kIq3SAvx2 = {kLayoutStep256, UnitBytesAvx2, PrepareStep256Avx2, MatMul<Iq3S>,
                                kPanelRows};

}  // namespace packtrain

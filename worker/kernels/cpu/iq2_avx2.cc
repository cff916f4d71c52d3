// IQ2_XXS, IQ2_XS, IQ2_S: 64 + magnitude from the grid, 64 - magnitude where the sign is set.

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "worker/kernels/cpu/activations_avx2.h"
#include "worker/kernels/cpu/grid_tables.h"
#include "worker/kernels/cpu/variants.h"

namespace packtrain {
namespace {

#include "worker/kernels/cpu/grid_avx2.inc"
struct Iq2 {
  static constexpr bool kMins = false, kSigned = false, kSums8 = false, kOpenAhead = true;
  static constexpr int kWordQuads = 1;
  static constexpr float kResultScale = 0.125f;
};

class Iq2Xxs : public Iq2 {
 public:
  static constexpr size_t kBlockBytes = 66;
  static constexpr int kGroupQuads = 8;

  void Open(const uint8_t* p, Header* h) const {
    const __m256 low = _mm256_castsi256_ps(Load(p + 2)), high = _mm256_castsi256_ps(Load(p + 34));
    const Vec words =
        _mm256_permute4x64_epi64(_mm256_castps_si256(_mm256_shuffle_ps(low, high, 0xdd)), 0xd8);
    _mm256_store_si256(reinterpret_cast<__m256i*>(h->signs), SignBytes(words));
    SetScales(WordScales(words), h);
    h->d = LoadHalf(p);
  }

  Vec Weights(const uint8_t* p, const Header& h, int b) const {
    const uint8_t* i = p + 2 + 8 * b;
    return ApplySigns(FourEntries(grid_, i), SignsOf(h, b), SpreadBytes());
  }

 private:
  const uint64_t* grid_ = Grids().iq2_xxs_bytes;
};

class Iq2Xs : public Iq2 {
 public:
  static constexpr size_t kBlockBytes = 74;
  static constexpr int kGroupQuads = 4;

  void Open(const uint8_t* p, Header* h) const {
    // The low byte of each word becomes the group's sign byte.
    for (int half = 0; half < 2; ++half) {
      const Vec sevens = _mm256_srli_epi16(Load(p + 2 + 32 * half), 9);
      const Vec folded = _mm256_xor_si256(sevens, _mm256_srli_epi16(sevens, 4));
      const Vec parity =
          _mm256_shuffle_epi8(ParityOfNibbles(), _mm256_and_si256(folded, _mm256_set1_epi16(15)));
      _mm256_store_si256(reinterpret_cast<__m256i*>(h->signs + 4 * half),
                         _mm256_or_si256(sevens, parity));
    }
    SetScales(NibbleScales(p + 66), h);
    h->d = LoadHalf(p);
  }

  Vec Weights(const uint8_t* p, const Header& h, int b) const {
    const uint64_t i = Load64(p + 2 + 8 * b);
    const uint64_t index[] = {i & 511, _bextr_u64(i, 16, 9), _bextr_u64(i, 32, 9),
                              _bextr_u64(i, 48, 9)};
    return ApplySigns(FourEntries(grid_, index),
                      _mm256_set1_epi64x(static_cast<int64_t>(h.signs[b])), SpreadWords());
  }

 private:
  const uint64_t* grid_ = Grids().iq2_xs_bytes;
};

class Iq2S : public Iq2 {
 public:
  static constexpr size_t kBlockBytes = 82;
  static constexpr int kGroupQuads = 4;

  void Open(const uint8_t* p, Header* h) const {
    SetScales(NibbleScales(p + 74), h);
    h->d = LoadHalf(p);
    // Bits 2 k of a byte of qh are bits 8 and 9 of index k of its four.
    const Vec to_words =
        _mm256_setr_epi64x(kFirst, kFirst + kNext, kFirst + 2 * kNext, kFirst + 3 * kNext);
    const Vec to_bit8 = _mm256_set1_epi64x(0x0004'0010'0040'0100);
#pragma GCC unroll 2
    for (int i = 0; i < 32; i += 16) {
      const Vec four = _mm256_set1_epi32(static_cast<int>(Load32(p + 66 + i / 4)));
      const Vec high = _mm256_mullo_epi16(_mm256_shuffle_epi8(four, to_words), to_bit8);
      StoreIndex(h, i,
                 _mm256_or_si256(_mm256_cvtepu8_epi16(Load128(p + 2 + i)),
                                 _mm256_and_si256(high, _mm256_set1_epi16(0x300))));
    }
  }

  Vec Weights(const uint8_t* p, const Header& h, int b) const {
    return ApplySigns(FourEntries(grid_, h.index + 4 * b),
                      _mm256_set1_epi32(static_cast<int>(Load32(p + 34 + 4 * b))), SpreadBytes());
  }

 private:
  // Shuffles: byte 0 of each word, with zero above; the byte after it.
  static constexpr int64_t kFirst = static_cast<int64_t>(0x8000800080008000);
  static constexpr int64_t kNext = 0x0001000100010001;

  const uint64_t* grid_ = Grids().iq2_s_bytes;
};

}  // namespace

const WeightKernel kIq2XxsAvx2 = {kLayoutStep256, UnitBytesAvx2, PrepareStep256Avx2, MatMul<Iq2Xxs>,
                                  kPanelRows};
const WeightKernel kIq2XsAvx2 = {kLayoutStep256, UnitBytesAvx2, PrepareStep256Avx2, MatMul<Iq2Xs>,
                                 kPanelRows};
const WeightKernel kIq2SAvx2 = {kLayoutStep256, UnitBytesAvx2, PrepareStep256Avx2, MatMul<Iq2S>,
                                kPanelRows};

}  // namespace packtrain

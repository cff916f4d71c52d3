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
  static constexpr bool kMins = false, kSigned = false;
  static constexpr float kResultScale = 0.125f;
  static Vec Offset(Vec x) { return _mm256_slli_epi32(x, 6); }
};

class Iq2Xxs : public Iq2 {
 public:
  static constexpr size_t kBlockBytes = 66;

  void Open(const uint8_t* p, Header* h) const {
    const __m256 low = _mm256_castsi256_ps(Load(p + 2)), high = _mm256_castsi256_ps(Load(p + 34));
    const Vec words =
        _mm256_permute4x64_epi64(_mm256_castps_si256(_mm256_shuffle_ps(low, high, 0xdd)), 0xd8);
    _mm256_store_si256(reinterpret_cast<__m256i*>(h->signs), SignBytes(words));
    h->scales = WordScales(words);
    h->d = LoadHalf(p);
  }

  Vec Weights(const uint8_t* p, const Header& h, int b) const {
    const uint32_t i = Load32(p + 2 + 8 * b);
    const Vec w = FourEntries(grid_, i & 255, i >> 8 & 255, i >> 16 & 255, i >> 24);
    return ApplySigns(w, SignsOf(h, b), SpreadBytes());
  }

 private:
  const uint64_t* grid_ = Grids().iq2_xxs_bytes;
};

class Iq2Xs : public Iq2 {
 public:
  static constexpr size_t kBlockBytes = 74;

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
    h->scales = NibbleScales(p + 66);
    h->d = LoadHalf(p);
  }

  Vec Weights(const uint8_t* p, const Header& h, int b) const {
    const uint64_t i = Load64(p + 2 + 8 * b);
    const Vec w = FourEntries(grid_, i & 511, i >> 16 & 511, i >> 32 & 511, i >> 48 & 511);
    return ApplySigns(w, _mm256_set1_epi64x(static_cast<int64_t>(h.signs[b])), SpreadWords());
  }

 private:
  const uint64_t* grid_ = Grids().iq2_xs_bytes;
};

class Iq2S : public Iq2 {
 public:
  static constexpr size_t kBlockBytes = 82;

  void Open(const uint8_t* p, Header* h) const {
    h->scales = NibbleScales(p + 74);
    h->d = LoadHalf(p);
  }

  Vec Weights(const uint8_t* p, const Header&, int b) const {
    const uint8_t* i = p + 2 + 4 * b;
    const uint64_t high = p[66 + b];
    const Vec w = FourEntries(grid_, i[0] | (high << 8 & 0x300), i[1] | (high << 6 & 0x300),
                              i[2] | (high << 4 & 0x300), i[3] | (high << 2 & 0x300));
    return ApplySigns(w, _mm256_set1_epi32(static_cast<int>(Load32(p + 34 + 4 * b))),
                      SpreadBytes());
  }

 private:
  const uint64_t* grid_ = Grids().iq2_s_bytes;
};

}  // namespace

const WeightKernel kIq2XxsAvx2 = {kLayoutStep256, UnitBytesAvx2, PrepareStep256Avx2,
                                  MatMul<Iq2Xxs>};
const WeightKernel kIq2XsAvx2 = {kLayoutStep256, UnitBytesAvx2, PrepareStep256Avx2, MatMul<Iq2Xs>};
const WeightKernel kIq2SAvx2 = {kLayoutStep256, UnitBytesAvx2, PrepareStep256Avx2, MatMul<Iq2S>};

}  // namespace packtrain

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
  static constexpr bool kMins = false, kSigned = false;
  static Vec Offset(Vec x) { return _mm256_slli_epi32(x, 6); }
};

class Iq3Xxs : public Iq3 {
 public:
  static constexpr size_t kBlockBytes = 98;
  static constexpr float kResultScale = 0.25f;

  void Open(const uint8_t* p, Header* h) const {
    const Vec words = Load(p + 66);
    _mm256_store_si256(reinterpret_cast<__m256i*>(h->signs), SignBytes(words));
    h->scales = WordScales(words);
    h->d = LoadHalf(p);
  }

  Vec Weights(const uint8_t* p, const Header& h, int b) const {
    const uint64_t i = Load64(p + 2 + 8 * b);
    const Vec w = FourPairs(
        TwoEntries(grid_, i & 255, i >> 8 & 255), TwoEntries(grid_, i >> 16 & 255, i >> 24 & 255),
        TwoEntries(grid_, i >> 32 & 255, i >> 40 & 255), TwoEntries(grid_, i >> 48 & 255, i >> 56));
    return ApplySigns(w, SignsOf(h, b), SpreadBytes());
  }

 private:
  const uint32_t* grid_ = Grids().iq3_xxs_bytes;
};

class Iq3S : public Iq3 {
 public:
  static constexpr size_t kBlockBytes = 110;
  static constexpr float kResultScale = 1.0f;

  void Open(const uint8_t* p, Header* h) const {
    const Vec shifts = _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28);
    const Vec nibbles =
        _mm256_srlv_epi32(_mm256_set1_epi32(static_cast<int>(Load32(p + 106))), shifts);
    h->scales = WordScales(_mm256_slli_epi32(nibbles, 28));
    h->d = LoadHalf(p);
  }

  Vec Weights(const uint8_t* p, const Header&, int b) const {
    const uint8_t* i = p + 2 + 8 * b;
    const uint64_t high = p[66 + b];
    const auto two = [&](int n) {
      return TwoEntries(grid_, i[n] | (high << (8 - n) & 256), i[n + 1] | (high << (7 - n) & 256));
    };
    return ApplySigns(FourPairs(two(0), two(2), two(4), two(6)),
                      _mm256_set1_epi32(static_cast<int>(Load32(p + 74 + 4 * b))), SpreadBytes());
  }

 private:
  const uint32_t* grid_ = Grids().iq3_s_bytes;
};

}  // namespace

const WeightKernel kIq3XxsAvx2 = {kLayoutStep256, UnitBytesAvx2, PrepareStep256Avx2,
                                  MatMul<Iq3Xxs>};
const WeightKernel kIq3SAvx2 = {kLayoutStep256, UnitBytesAvx2, PrepareStep256Avx2, MatMul<Iq3S>};

}  // namespace packtrain

// IQ1_S, IQ1_M. A weight times 8 is 8 level +- 1; the unsigned operand is 8 (level + 1) + (0 or 2),
// offset 9.
//
// 2048 entries are too many for permutes (64 tables of 64 bytes, each for every index): they are
// gathered where that is fast, else loaded one by one. One 32-bit lane per group of 16 weights, as
// k_quants_avx512.cc.

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "worker/kernels/cpu/activations_avx512.h"
#include "worker/kernels/cpu/grid_tables.h"
#include "worker/kernels/cpu/variants.h"

namespace packtrain {
namespace {

#include "worker/kernels/cpu/matmul_avx512.inc"

// A 3-bit scale s that lies at bit 1 becomes 2 s + 1.
inline Vec OddOfThree(Vec x) {
  return _mm512_ternarylogic_epi32(x, _mm512_set1_epi32(0x0e), _mm512_set1_epi32(1), 0xea);
}

// Byte 2 k + 1 of each qword gets the bits from kBits * k on, for the upper byte of word k.
template <int kBits>
constexpr Bytes UpperBytes() {
  return MakeBytes([](int n) { return kBits * (n % 8 / 2); });
}

// A block as words of groups of eight: the index's eleven bits, then perhaps the sign of delta.
// `qh` has kBits bits per group, the groups of each 16 bits from its lowest on.
template <int kBits>
inline Vec GroupWords(const uint8_t* qs, Vec qh_words) {
  static constexpr Bytes kUpper = UpperBytes<kBits>();
  const Vec low = _mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(qs)));
  return _mm512_ternarylogic_epi32(_mm512_multishift_epi64_epi8(Load(kUpper), qh_words),
                                   _mm512_set1_epi16(((1 << kBits) - 1) << 8), low, 0xea);
}

inline Vec WordsToQwords(const uint8_t* p) {
  return _mm512_cvtepu16_epi64(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}

// The entries of four blocks' groups, loaded one by one.
class LoadedEntries {
 public:
  // Indices in the low eleven bits of each word.
  void Take(int block, Vec words) {
    _mm512_store_si512(index_[block], _mm512_and_si512(words, _mm512_set1_epi16(0x7ff)));
  }

  // All are stored before the first is loaded, since a load that is forwarded from a wider store is
  // slow. Makes the compiler load them, not take the vectors apart, which costs more.
  void AllTaken() { asm("" : "+m"(index_)); }

  // Of each two groups the one `k`: of the first eight pairs, and of the last eight.
  void Find(const uint64_t* grid, int block, int k, Vec* first, Vec* last) const {
    *first = Eight(grid, index_[block] + k);
    *last = Eight(grid, index_[block] + 16 + k);
  }

 private:
  // The entries of `index`'s even elements.
  static Vec Eight(const uint64_t* grid, const uint16_t* index) {
    const auto pair = [&](int i) {
      const __m128i low = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(grid + index[i]));
      return _mm_castpd_si128(_mm_loadh_pd(_mm_castsi128_pd(low),
                                           reinterpret_cast<const double*>(grid + index[i + 2])));
    };
    const auto four = [&](int i) { return _mm256_set_m128i(pair(i + 4), pair(i)); };
    return _mm512_inserti64x4(_mm512_castsi256_si512(four(0)), four(8), 1);
  }

  alignas(64) uint16_t index_[4][32];
};

// The same, gathered.
class GatheredEntries {
 public:
  void Take(int block, Vec words) { words_[block] = words; }
  void AllTaken() {}

  void Find(const uint64_t* grid, int block, int k, Vec* first, Vec* last) const {
    const Vec shifted = k == 0 ? words_[block] : _mm512_srli_epi32(words_[block], 16);
    const Vec index = _mm512_and_si512(shifted, _mm512_set1_epi32(0x7ff));
    *first = Eight(grid, _mm512_castsi512_si256(index));
    *last = Eight(grid, _mm512_extracti64x4_epi64(index, 1));
  }

 private:
  // Masked, with a source, since a gather waits for the register that it writes to.
  static Vec Eight(const uint64_t* grid, __m256i index) {
    return _mm512_mask_i32gather_epi64(_mm512_setzero_si512(), 0xff, index, grid, sizeof *grid);
  }

  Vec words_[4];
};

// What the two types have in common.
struct Iq1 {
  static constexpr int kBlockWeights = 256;
  static constexpr int kVectors = 4, kStepUnits = 4;
  static constexpr bool kMins = false;
  static constexpr float kResultScale = 0.125f;
  static Vec Init(Vec init) { return _mm512_add_epi32(_mm512_slli_epi32(init, 3), init); }

  // plus[k]: groups of 16 whose half k has a positive delta.
  template <typename Entries>
  void Weights(const Entries& entries, int block, const __mmask16* plus, Vec* w) const {
    const Vec even = Load(kEven), odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
#pragma GCC unroll 2
    for (int k = 0; k < 2; ++k) {
      Vec first, last;
      entries.Find(grid, block, k, &first, &last);
      const auto add = [&](Vec x) {
        return _mm512_mask_add_epi32(x, plus[k], x, _mm512_set1_epi8(2));
      };
      w[2 * k] = add(_mm512_permutex2var_epi32(first, even, last));
      w[2 * k + 1] = add(_mm512_permutex2var_epi32(first, odd, last));
    }
  }

  static constexpr Dwords kEven = MakeDwords([](int n) { return 2 * n; });

  const uint64_t* grid = Grids().iq1_bytes;
};

template <typename Entries>
class Iq1S : public Iq1 {
 public:
  static constexpr int kBlockBytes = 50, kStepBytes = 4 * 50;

  void Unpack(const uint8_t* p, WeightUnit<4>* units) const {
    Entries entries;
    __mmask16 plus[4];
#pragma GCC unroll 4
    for (int b = 0; b < 4; ++b) {
      const uint8_t* block = p + 50 * b;
      const Vec qh = WordsToQwords(block + 34);
      entries.Take(b, GroupWords<3>(block + 2, qh));
      const Vec upper = _mm512_multishift_epi64_epi8(_mm512_set1_epi8(8), qh);
      plus[b] = _mm512_testn_epi32_mask(upper, _mm512_set1_epi32(0x80));
      const Vec scales = OddOfThree(_mm512_multishift_epi64_epi8(_mm512_set1_epi8(11), qh));
      units[b].scale = LaneScales(scales, HalfToVector(block));
    }
    entries.AllTaken();
#pragma GCC unroll 4
    for (int b = 0; b < 4; ++b) {
      const __mmask16 both[] = {plus[b], plus[b]};
      Weights(entries, b, both, units[b].w);
    }
  }
};

template <typename Entries>
class Iq1M : public Iq1 {
 public:
  static constexpr int kBlockBytes = 56, kStepBytes = 4 * 56;

  void Unpack(const uint8_t* p, WeightUnit<4>* units) const {
    Entries entries;
    __mmask16 plus[4][2];
#pragma GCC unroll 4
    for (int b = 0; b < 4; ++b) {
      const uint8_t* block = p + 56 * b;
      const Vec words = GroupWords<4>(block, WordsToQwords(block + 32));
      entries.Take(b, words);
      plus[b][0] = _mm512_testn_epi32_mask(words, _mm512_set1_epi32(0x0800));
      plus[b][1] = _mm512_testn_epi32_mask(words, _mm512_set1_epi32(0x08000000));
      const uint64_t tail = Load64(block + 48);
      const auto half = static_cast<uint16_t>(_pext_u64(tail, 0xf000f000f000f000));
      const Vec all = _mm512_set1_epi64(static_cast<int64_t>(tail));
      const Vec scales = OddOfThree(_mm512_multishift_epi64_epi8(Load(kScaleToLane), all));
      units[b].scale = LaneScales(scales, _mm512_set1_ps(_cvtsh_ss(half)));
    }
    entries.AllTaken();
#pragma GCC unroll 4
    for (int b = 0; b < 4; ++b) Weights(entries, b, plus[b], units[b].w);
  }

 private:
  // Scale g is at bit 3 (g % 4) of word g / 4; lane g wants it at bit 1.
  static constexpr Bytes kScaleToLane =
      MakeBytes([](int n) { return (16 * (n / 16) + 3 * (n / 4 % 4) - 1) & 63; });
};

}  // namespace

const WeightKernel kIq1SAvx512 = {kLayoutSixteen, SixteenBytesAvx512, PrepareSixteenAvx512,
                                  MatMul<Iq1S<LoadedEntries>>};
const WeightKernel kIq1MAvx512 = {kLayoutSixteen, SixteenBytesAvx512, PrepareSixteenAvx512,
                                  MatMul<Iq1M<LoadedEntries>>};
const WeightKernel kIq1SAvx512Gather = {kLayoutSixteen, SixteenBytesAvx512, PrepareSixteenAvx512,
                                        MatMul<Iq1S<GatheredEntries>>};
const WeightKernel kIq1MAvx512Gather = {kLayoutSixteen, SixteenBytesAvx512, PrepareSixteenAvx512,
                                        MatMul<Iq1M<GatheredEntries>>};

}  // namespace packtrain

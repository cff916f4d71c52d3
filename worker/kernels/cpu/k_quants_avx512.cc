// Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, IQ4_XS.
//
// One 32-bit lane per group of 16 weights (kLayoutSixteen): vector v collects dword v of every
// group with one dword permute of the packed bytes, then lanes shift by their own count. That makes
// one chain of dot products and one f32 step per block, whatever the sub-block scales.

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "common/quant/codebooks.h"
#include "worker/kernels/cpu/activations_avx512.h"
#include "worker/kernels/cpu/variants.h"

namespace packtrain {
namespace {

#include "worker/kernels/cpu/matmul_avx512.inc"

struct KQuant {
  static constexpr int kBlockWeights = 256;
  static constexpr int kVectors = 4, kStepUnits = 1;
  static constexpr float kResultScale = 1.0f;
};

// x & mask | y
inline Vec MaskedOr(Vec x, Vec mask, Vec y) { return _mm512_ternarylogic_epi32(x, mask, y, 0xea); }

inline Vec Set(uint8_t byte) { return _mm512_set1_epi8(static_cast<char>(byte)); }

inline Vec WidenBytes(__m128i bytes) { return _mm512_cvtepu8_epi32(bytes); }

// Dword v of each lane's group, v = 0..3, is dword first[lane] + v of the source.
inline Vec FirstPlus(const Dwords& first, int v) {
  return _mm512_add_epi32(Load(first), _mm512_set1_epi32(v));
}

// Eight bytes, each for two lanes.
inline Vec PairsOfLanes(uint64_t bytes) {
  const __m128i x = _mm_cvtsi64_si128(static_cast<int64_t>(bytes));
  return WidenBytes(_mm_unpacklo_epi8(x, x));
}

// The 6-bit scales and minima of Q4_K and Q5_K.
inline void K4Scales(const uint8_t* p, __m512* scale, __m512* min) {
  const uint32_t a = Load32(p + 4), b = Load32(p + 8), c = Load32(p + 12);
  const uint64_t scale_high = (c & 0x0f0f0f0f) | (a >> 2 & 0x30303030);
  const uint64_t min_high = (c >> 4 & 0x0f0f0f0f) | (b >> 2 & 0x30303030);
  *scale = LaneScales(PairsOfLanes((a & 0x3f3f3f3f) | scale_high << 32), HalfToVector(p));
  *min = LaneScales(PairsOfLanes((b & 0x3f3f3f3f) | min_high << 32), HalfToVector(p + 2));
}

// Q4_K, Q5_K: lane 4 c + 2 h + s is weights 64 c + 32 h + 16 s .. + 15: nibble h of bytes 32 c + 16
// s.
constexpr Dwords kK4Dword = MakeDwords([](int n) { return 8 * (n / 4) + 4 * (n % 2); });
constexpr Dwords kK4Shift = MakeDwords([](int n) { return 4 * (n / 2 % 2); });

class Q4K : public KQuant {
 public:
  static constexpr int kBlockBytes = 144, kStepBytes = 144;
  static constexpr bool kMins = true;
  static Vec Init(Vec) { return _mm512_setzero_si512(); }

  void Unpack(const uint8_t* p, WeightUnit<4>* unit) const {
    K4Scales(p, &unit->scale, &unit->min);
    const Vec q0 = Load(p + 16), q1 = Load(p + 80);
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) {
      const Vec q = _mm512_permutex2var_epi32(q0, FirstPlus(kK4Dword, v), q1);
      unit->w[v] = _mm512_and_si512(_mm512_srlv_epi32(q, Load(kK4Shift)), Set(0x0f));
    }
  }
};

class Q5K : public KQuant {
 public:
  static constexpr int kBlockBytes = 176, kStepBytes = 176;
  static constexpr bool kMins = true;
  static Vec Init(Vec) { return _mm512_setzero_si512(); }

  void Unpack(const uint8_t* p, WeightUnit<4>* unit) const {
    K4Scales(p, &unit->scale, &unit->min);
    const Vec high =
        _mm512_castsi256_si512(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 16)));
    const Vec q0 = Load(p + 48), q1 = Load(p + 112);
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) {
      const Vec q = _mm512_permutex2var_epi32(q0, FirstPlus(kK4Dword, v), q1);
      const Vec low = _mm512_and_si512(_mm512_srlv_epi32(q, Load(kK4Shift)), Set(0x0f));
      const Vec h = _mm512_permutexvar_epi32(FirstPlus(kHighDword, v), high);
      unit->w[v] = MaskedOr(_mm512_rolv_epi32(h, Load(kHighRotate)), Set(0x10), low);
    }
  }

 private:
  // Bit 2 c + h of byte 16 s + .. goes to bit 4.
  static constexpr Dwords kHighDword = MakeDwords([](int n) { return 4 * (n % 2); });
  static constexpr Dwords kHighRotate = MakeDwords([](int n) { return (4 - n / 2) & 31; });
};

class Q6K : public KQuant {
 public:
  static constexpr int kBlockBytes = 210, kStepBytes = 210;
  static constexpr bool kMins = false;
  static Vec Init(Vec init) { return _mm512_slli_epi32(init, 5); }

  void Unpack(const uint8_t* p, WeightUnit<4>* unit) const {
    const Vec q0 = Load(p), q1 = Load(p + 64), high = Load(p + 128);
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) {
      const Vec q = _mm512_permutex2var_epi32(q0, FirstPlus(kLowDword, v), q1);
      const Vec low = _mm512_and_si512(_mm512_srlv_epi32(q, Load(kLowShift)), Set(0x0f));
      const Vec h = _mm512_permutexvar_epi32(FirstPlus(kHighDword, v), high);
      unit->w[v] = MaskedOr(_mm512_rolv_epi32(h, Load(kHighRotate)), Set(0x30), low);
    }
    const __m128i scales = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 192));
    unit->scale = LaneScales(_mm512_cvtepi8_epi32(scales), HalfToVector(p + 208));
  }

 private:
  // Lane 8 n + 2 k + s is weights 128 n + 32 k + 16 s .. + 15.
  static constexpr Dwords kLowDword =
      MakeDwords([](int n) { return 16 * (n / 8) + 8 * (n / 2 % 2) + 4 * (n % 2); });
  static constexpr Dwords kLowShift = MakeDwords([](int n) { return 4 * (n / 4 % 2); });
  static constexpr Dwords kHighDword = MakeDwords([](int n) { return 8 * (n / 8) + 4 * (n % 2); });
  static constexpr Dwords kHighRotate =
      MakeDwords([](int n) { return (4 - 2 * (n / 2 % 4)) & 31; });
};

// 2-bit fields of Q2_K and Q3_K; lanes as Q6_K.
constexpr Dwords kK2Dword = MakeDwords([](int n) { return 8 * (n / 8) + 4 * (n % 2); });
constexpr Dwords kK2Shift = MakeDwords([](int n) { return 2 * (n / 2 % 4); });

inline Vec TwoBits(Vec q, int v) {
  const Vec x = _mm512_permutexvar_epi32(FirstPlus(kK2Dword, v), q);
  return _mm512_and_si512(_mm512_srlv_epi32(x, Load(kK2Shift)), Set(3));
}

class Q2K : public KQuant {
 public:
  static constexpr int kBlockBytes = 84, kStepBytes = 84;
  static constexpr bool kMins = true;
  static Vec Init(Vec) { return _mm512_setzero_si512(); }

  void Unpack(const uint8_t* p, WeightUnit<4>* unit) const {
    const Vec q = Load(p + 16);
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) unit->w[v] = TwoBits(q, v);
    const Vec both = WidenBytes(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    const Vec scales = _mm512_and_si512(both, _mm512_set1_epi32(15));
    unit->scale = LaneScales(scales, HalfToVector(p + 80));
    unit->min = LaneScales(_mm512_srli_epi32(both, 4), HalfToVector(p + 82));
  }
};

class Q3K : public KQuant {
 public:
  static constexpr int kBlockBytes = 110, kStepBytes = 110;
  static constexpr bool kMins = false;
  static Vec Init(Vec init) { return _mm512_slli_epi32(init, 2); }

  void Unpack(const uint8_t* p, WeightUnit<4>* unit) const {
    const Vec mask =
        _mm512_castsi256_si512(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    const Vec q = Load(p + 32);
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) {
      const Vec h = _mm512_permutexvar_epi32(FirstPlus(kMaskDword, v), mask);
      unit->w[v] = MaskedOr(_mm512_rolv_epi32(h, Load(kMaskRotate)), Set(4), TwoBits(q, v));
    }
    const uint64_t low = Load64(p + 96);
    const uint64_t high = Load32(p + 104);
    constexpr uint64_t kNibbles = 0x0f0f0f0f0f0f0f0f;
    constexpr uint64_t kPairs = 0x03030303;
    const uint64_t first = (low & kNibbles) | (high & kPairs) << 4 | (high >> 2 & kPairs) << 36;
    const uint64_t second =
        (low >> 4 & kNibbles) | (high >> 4 & kPairs) << 4 | (high >> 6 & kPairs) << 36;
    const Vec scales =
        WidenBytes(_mm_set_epi64x(static_cast<int64_t>(second), static_cast<int64_t>(first)));
    unit->scale =
        LaneScales(_mm512_sub_epi32(scales, _mm512_set1_epi32(32)), HalfToVector(p + 108));
  }

 private:
  // Bit w / 32 of byte w % 32 goes to bit 2.
  static constexpr Dwords kMaskDword = MakeDwords([](int n) { return 4 * (n % 2); });
  static constexpr Dwords kMaskRotate = MakeDwords([](int n) { return (2 - n / 2) & 31; });
};

class Iq4Xs : public KQuant {
 public:
  static constexpr int kBlockBytes = 136, kStepBytes = 136;
  static constexpr bool kMins = false;
  static Vec Init(Vec init) { return _mm512_slli_epi32(init, 7); }

  void Unpack(const uint8_t* p, WeightUnit<4>* unit) const {
    const Vec q0 = Load(p + 8), q1 = Load(p + 72);
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) {
      const Vec q = _mm512_permutex2var_epi32(q0, FirstPlus(kDword, v), q1);
      unit->w[v] = _mm512_permutexvar_epi8(_mm512_srlv_epi32(q, Load(kShift)), values_);
    }
    // d, then sixteen bits with the high parts of the scales, then their nibbles.
    const Vec head = _mm512_set1_epi64(static_cast<int64_t>(Load64(p)));
    const Vec low = _mm512_multishift_epi64_epi8(Load(kScaleLow), head);
    const Vec high = _mm512_multishift_epi64_epi8(Load(kScaleHigh), head);
    const Vec scales =
        MaskedOr(low, _mm512_set1_epi32(15), _mm512_and_si512(high, _mm512_set1_epi32(0x30)));
    unit->scale = LaneScales(_mm512_sub_epi32(scales, _mm512_set1_epi32(32)), HalfToVector(p));
  }

 private:
  // Lane 2 b + s is nibble s of the 16 bytes of sub-block b.
  static constexpr Dwords kDword = MakeDwords([](int n) { return 4 * (n / 2); });
  static constexpr Dwords kShift = MakeDwords([](int n) { return 4 * (n % 2); });
  static constexpr Bytes kScaleLow = MakeBytes([](int n) { return 32 + 4 * (n / 8); });
  static constexpr Bytes kScaleHigh = MakeBytes([](int n) { return 16 + 2 * (n / 8) - 4; });
  static constexpr Bytes kValues = MakeBytes([](int n) { return 128 + kIq4NlValues[n % 16]; });

  Vec values_ = Load(kValues);
};

}  // namespace

const WeightKernel kQ2KAvx512 = {kLayoutSixteen, SixteenBytesAvx512, PrepareSixteenAvx512,
                                 MatMul<Q2K>};
const WeightKernel kQ3KAvx512 = {kLayoutSixteen, SixteenBytesAvx512, PrepareSixteenAvx512,
                                 MatMul<Q3K>};
const WeightKernel kQ4KAvx512 = {kLayoutSixteen, SixteenBytesAvx512, PrepareSixteenAvx512,
                                 MatMul<Q4K>};
const WeightKernel kQ5KAvx512 = {kLayoutSixteen, SixteenBytesAvx512, PrepareSixteenAvx512,
                                 MatMul<Q5K>};
const WeightKernel kQ6KAvx512 = {kLayoutSixteen, SixteenBytesAvx512, PrepareSixteenAvx512,
                                 MatMul<Q6K>};
const WeightKernel kIq4XsAvx512 = {kLayoutSixteen, SixteenBytesAvx512, PrepareSixteenAvx512,
                                   MatMul<Iq4Xs>};

}  // namespace packtrain

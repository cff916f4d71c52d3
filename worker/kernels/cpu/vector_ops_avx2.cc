// Vector arithmetic with AVX2, FMA and F16C.

#include <immintrin.h>

#include "common/quant/codec.h"
#include "worker/kernels/cpu/vector_ops.h"

namespace packtrain {
namespace {

using Reg = __m256;
constexpr size_t kLanes = 8;
constexpr int kTileQueries = 3;

inline Reg MulAdd(Reg a, Reg b, Reg c) { return _mm256_fmadd_ps(a, b, c); }
inline float Sum(Reg x) {
  const __m128 four = _mm256_castps256_ps128(x) + _mm256_extractf128_ps(x, 1);
  const __m128 two = four + _mm_movehl_ps(four, four);
  return two[0] + two[1];
}
inline float Max(Reg x) {
  const __m128 four = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return two[0] > two[1] ? two[0] : two[1];
}

inline Reg Half(const uint8_t* p) {
  uint16_t bits;
  __builtin_memcpy(&bits, p, sizeof bits);
  return _mm256_set1_ps(_cvtsh_ss(bits));
}
inline Reg Widen(__m128i bytes) { return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)); }
inline __m128i LoadBytes(const uint8_t* p) {
  return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
}

// 32 values from two vectors of 16 bytes: factor * byte.
inline void ScaleBytes(__m128i low, __m128i high, Reg factor, Reg add, bool has_add, float* out) {
  const __m128i bytes[4] = {low, _mm_srli_si128(low, 8), high, _mm_srli_si128(high, 8)};
  for (size_t i = 0; i < 4; ++i) {
    const Reg v = Widen(bytes[i]) * factor;
    _mm256_storeu_ps(out + 8 * i, has_add ? v + add : v);
  }
}

bool DecodeBlocks(TensorType type, const uint8_t* p, size_t count, float* out) {
  switch (type) {
    case TensorType::kF16: {
      size_t i = 0;
      for (; i + 8 <= count; i += 8)
        _mm256_storeu_ps(out + i, _mm256_cvtph_ps(LoadBytes(p + 2 * i)));
      for (; i < count; ++i) out[i] = Half(p + 2 * i)[0];
      return true;
    }
    case TensorType::kQ8_0:
      for (; count != 0; count -= 32, p += 34, out += 32) {
        ScaleBytes(LoadBytes(p + 2), LoadBytes(p + 18), Half(p), Reg{}, false, out);
      }
      return true;
    case TensorType::kQ4_1: {
      const __m128i mask = _mm_set1_epi8(15);
      for (; count != 0; count -= 32, p += 20, out += 32) {
        const __m128i q = LoadBytes(p + 4);
        ScaleBytes(_mm_and_si128(q, mask), _mm_and_si128(_mm_srli_epi16(q, 4), mask), Half(p),
                   Half(p + 2), true, out);
      }
      return true;
    }
    default:
      return false;
  }
}

#include "worker/kernels/cpu/vector_ops.inc"

}  // namespace

const VectorOps kVectorOpsAvx2 = kOps;

}  // namespace packtrain

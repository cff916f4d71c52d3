// Vector arithmetic with AVX-512.

#include <immintrin.h>

#include "common/quant/codec.h"
#include "worker/kernels/cpu/vector_ops.h"

namespace packtrain {
namespace {

using Reg = __m512;
constexpr size_t kLanes = 16;
constexpr int kTileQueries = 4;

inline Reg MulAdd(Reg a, Reg b, Reg c) { return _mm512_fmadd_ps(a, b, c); }
inline float Sum(Reg x) { return _mm512_reduce_add_ps(x); }
inline float Max(Reg x) { return _mm512_reduce_max_ps(x); }

inline Reg Half(const uint8_t* p) {
  uint16_t bits;
  __builtin_memcpy(&bits, p, sizeof bits);
  return _mm512_set1_ps(_cvtsh_ss(bits));
}
inline Reg Widen(__m128i bytes) { return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes)); }
inline __m128i LoadBytes(const uint8_t* p) {
  return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
}
inline Reg Halves(const uint8_t* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}

bool DecodeBlocks(TensorType type, const uint8_t* p, size_t count, float* out) {
  switch (type) {
    case TensorType::kF16: {
      size_t i = 0;
      for (; i + 16 <= count; i += 16) _mm512_storeu_ps(out + i, Halves(p + 2 * i));
      for (; i < count; ++i) out[i] = Half(p + 2 * i)[0];
      return true;
    }
    case TensorType::kQ8_0:
      for (; count != 0; count -= 32, p += 34, out += 32) {
        const Reg d = Half(p);
        _mm512_storeu_ps(out, Widen(LoadBytes(p + 2)) * d);
        _mm512_storeu_ps(out + 16, Widen(LoadBytes(p + 18)) * d);
      }
      return true;
    case TensorType::kQ4_1: {
      const __m128i mask = _mm_set1_epi8(15);
      for (; count != 0; count -= 32, p += 20, out += 32) {
        const Reg d = Half(p), m = Half(p + 2);
        const __m128i q = LoadBytes(p + 4);
        _mm512_storeu_ps(out, Widen(_mm_and_si128(q, mask)) * d + m);
        _mm512_storeu_ps(out + 16, Widen(_mm_and_si128(_mm_srli_epi16(q, 4), mask)) * d + m);
      }
      return true;
    }
    default:
      return false;
  }
}

#include "worker/kernels/cpu/vector_ops.inc"

}  // namespace

const VectorOps kVectorOpsAvx512 = kOps;

}  // namespace packtrain

// F32, F16, BF16, and every type without a kernel of its own: decoded to f32 by the reference, 256
// weights at a time. Activations stay f32.

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "common/quant/codec.h"
#include "worker/kernels/cpu/activations_avx2.h"
#include "worker/kernels/cpu/variants.h"

namespace packtrain {
namespace {

using Reg = __m256;
constexpr size_t kLanes = 8;

inline Reg LoadFloats(const float* p) { return _mm256_loadu_ps(p); }
inline Reg LoadFloatsPart(const float* p, size_t count) {
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return _mm256_maskload_ps(p,
                            _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count)), lane));
}
inline Reg MulAdd(Reg a, Reg b, Reg c) { return _mm256_fmadd_ps(a, b, c); }
inline float Sum(Reg x) {
  const __m128 four = _mm256_castps256_ps128(x) + _mm256_extractf128_ps(x, 1);
  return (four[0] + four[1]) + (four[2] + four[3]);
}

// The last few 16-bit values of a row, zero behind them.
inline __m128i LoadWords(const uint8_t* p, size_t count) {
  alignas(16) uint16_t words[8] = {};
  __builtin_memcpy(words, p, 2 * count);
  return _mm_load_si128(reinterpret_cast<const __m128i*>(words));
}

struct F32 {
  static constexpr size_t kBytes = 4;
  static __m256 Load(const uint8_t* row, size_t i) {
    return _mm256_loadu_ps(reinterpret_cast<const float*>(row + 4 * i));
  }
  static __m256 LoadPart(const uint8_t* row, size_t i, size_t count) {
    return LoadFloatsPart(reinterpret_cast<const float*>(row + 4 * i), count);
  }
};

struct F16 {
  static constexpr size_t kBytes = 2;
  static __m256 Load(const uint8_t* row, size_t i) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(row + 2 * i)));
  }
  static __m256 LoadPart(const uint8_t* row, size_t i, size_t count) {
    return _mm256_cvtph_ps(LoadWords(row + 2 * i, count));
  }
};

struct BF16 {
  static constexpr size_t kBytes = 2;
  static __m256 Widen(__m128i x) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(x), 16));
  }
  static __m256 Load(const uint8_t* row, size_t i) {
    return Widen(_mm_loadu_si128(reinterpret_cast<const __m128i*>(row + 2 * i)));
  }
  static __m256 LoadPart(const uint8_t* row, size_t i, size_t count) {
    return Widen(LoadWords(row + 2 * i, count));
  }
};

#include "worker/kernels/cpu/float_matmul.inc"

}  // namespace

const WeightKernel kF32Avx2 = {kLayoutF32, ActivationBytes, Prepare, MatMul<F32>};
const WeightKernel kF16Avx2 = {kLayoutF32, ActivationBytes, Prepare, MatMul<F16>};
const WeightKernel kBF16Avx2 = {kLayoutF32, ActivationBytes, Prepare, MatMul<BF16>};
const WeightKernel kF64Avx2 = Decoded<TensorType::kF64, 1, 8>();
const WeightKernel kQ4_1Avx2 = Decoded<TensorType::kQ4_1, 32, 20>();
const WeightKernel kQ5_0Avx2 = Decoded<TensorType::kQ5_0, 32, 22>();
const WeightKernel kQ5_1Avx2 = Decoded<TensorType::kQ5_1, 32, 24>();
const WeightKernel kQ8_1Avx2 = Decoded<TensorType::kQ8_1, 32, 36>();
const WeightKernel kQ8KAvx2 = Decoded<TensorType::kQ8_K, 256, 292>();
const WeightKernel kTq1_0Avx2 = Decoded<TensorType::kTQ1_0, 256, 54>();
const WeightKernel kTq2_0Avx2 = Decoded<TensorType::kTQ2_0, 256, 66>();
const WeightKernel kNvfp4Avx2 = Decoded<TensorType::kNVFP4, 64, 36>();
const WeightKernel kQ1_0Avx2 = Decoded<TensorType::kQ1_0, 128, 18>();
const WeightKernel kQ2_0Avx2 = Decoded<TensorType::kQ2_0, 64, 18>();

}  // namespace packtrain

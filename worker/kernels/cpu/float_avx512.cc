// F32, F16, BF16, and every type without a kernel of its own: decoded to f32 by the reference, 256
// weights at a time. Activations stay f32.

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "common/quant/codec.h"
#include "worker/kernels/cpu/activations_avx512.h"
#include "worker/kernels/cpu/variants.h"

namespace packtrain {
namespace {

using Reg = __m512;
constexpr size_t kLanes = 16;

inline Reg LoadFloats(const float* p) { return _mm512_loadu_ps(p); }
inline __mmask16 Mask(size_t count) { return static_cast<__mmask16>((1u << count) - 1); }
inline Reg LoadFloatsPart(const float* p, size_t count) {
  return _mm512_maskz_loadu_ps(Mask(count), p);
}
inline Reg MulAdd(Reg a, Reg b, Reg c) { return _mm512_fmadd_ps(a, b, c); }
inline float Sum(Reg x) { return _mm512_reduce_add_ps(x); }

struct F32 {
  static constexpr size_t kBytes = 4;
  static __m512 Load(const uint8_t* row, size_t i) { return _mm512_loadu_ps(row + 4 * i); }
  static __m512 LoadPart(const uint8_t* row, size_t i, size_t count) {
    return _mm512_maskz_loadu_ps(Mask(count), row + 4 * i);
  }
};

struct F16 {
  static constexpr size_t kBytes = 2;
  static __m512 Load(const uint8_t* row, size_t i) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(row + 2 * i)));
  }
  static __m512 LoadPart(const uint8_t* row, size_t i, size_t count) {
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(Mask(count), row + 2 * i));
  }
};

struct BF16 {
  static constexpr size_t kBytes = 2;
  static __m512 Widen(__m256i x) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16));
  }
  static __m512 Load(const uint8_t* row, size_t i) {
    return Widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(row + 2 * i)));
  }
  static __m512 LoadPart(const uint8_t* row, size_t i, size_t count) {
    return Widen(_mm256_maskz_loadu_epi16(Mask(count), row + 2 * i));
  }
};

#include "worker/kernels/cpu/float_matmul.inc"

}  // namespace

const WeightKernel kF32Avx512 = {kLayoutF32, ActivationBytes, Prepare, MatMul<F32>};
const WeightKernel kF16Avx512 = {kLayoutF32, ActivationBytes, Prepare, MatMul<F16>};
const WeightKernel kBF16Avx512 = {kLayoutF32, ActivationBytes, Prepare, MatMul<BF16>};
const WeightKernel kF64Avx512 = Decoded<TensorType::kF64, 1, 8>();
const WeightKernel kQ4_1Avx512 = Decoded<TensorType::kQ4_1, 32, 20>();
const WeightKernel kQ5_0Avx512 = Decoded<TensorType::kQ5_0, 32, 22>();
const WeightKernel kQ5_1Avx512 = Decoded<TensorType::kQ5_1, 32, 24>();
const WeightKernel kQ8_1Avx512 = Decoded<TensorType::kQ8_1, 32, 36>();
const WeightKernel kQ8KAvx512 = Decoded<TensorType::kQ8_K, 256, 292>();
const WeightKernel kTq1_0Avx512 = Decoded<TensorType::kTQ1_0, 256, 54>();
const WeightKernel kTq2_0Avx512 = Decoded<TensorType::kTQ2_0, 256, 66>();
const WeightKernel kNvfp4Avx512 = Decoded<TensorType::kNVFP4, 64, 36>();
const WeightKernel kQ1_0Avx512 = Decoded<TensorType::kQ1_0, 128, 18>();
const WeightKernel kQ2_0Avx512 = Decoded<TensorType::kQ2_0, 64, 18>();

}  // namespace packtrain

#include "worker/kernels/cpu/activations_avx512.h"

#include <immintrin.h>

namespace packtrain {
namespace {

// Quantises `count` values (a multiple of 16) to +-127 and returns the step. As the reference's
// Q8_K, but for the sign of the step, which no product shows. A NaN makes the step NaN.
float Quantize(const float* x, size_t count, int8_t* q) {
  const __m512 abs_mask = _mm512_castsi512_ps(_mm512_set1_epi32(0x7fffffff));
  __m512 largest = _mm512_setzero_ps();
  __mmask16 nan = 0;
  for (size_t i = 0; i < count; i += 16) {
    const __m512 v = _mm512_loadu_ps(x + i);
    nan = static_cast<__mmask16>(nan | _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q));
    largest = _mm512_max_ps(largest, _mm512_and_ps(v, abs_mask));
  }
  const float max = _mm512_reduce_max_ps(largest);
  const float inverse = max > 0 ? 127.0f / max : 0.0f;
  for (size_t i = 0; i < count; i += 16) {
    const __m512 v = _mm512_mul_ps(_mm512_loadu_ps(x + i), _mm512_set1_ps(inverse));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(q + i),
                     _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(v)));
  }
  if (nan != 0) return __builtin_nanf("");
  return max > 0 ? 1.0f / inverse : 0.0f;
}

// Byte i of the result is byte index[i] of the 256 at `q`.
__m512i Permute256(const int8_t* q, __m512i index) {
  const __m512i low =
      _mm512_permutex2var_epi8(_mm512_loadu_si512(q), index, _mm512_loadu_si512(q + 64));
  const __m512i high =
      _mm512_permutex2var_epi8(_mm512_loadu_si512(q + 128), index, _mm512_loadu_si512(q + 192));
  return _mm512_mask_blend_epi8(_mm512_movepi8_mask(index), low, high);
}

// Fills the fields that follow from q and scale.
template <int kVectors>
void Finish(ActivationUnit<kVectors>* unit, int offset) {
  __m512i sums = _mm512_setzero_si512();
  for (int v = 0; v < kVectors; ++v) {
    sums = _mm512_dpbusd_epi32(sums, _mm512_set1_epi8(1), _mm512_load_si512(unit->q + 64 * v));
  }
  const __m512i negative = _mm512_sub_epi32(_mm512_setzero_si512(), sums);
  _mm512_store_si512(unit->init, _mm512_mullo_epi32(negative, _mm512_set1_epi32(offset)));
  _mm512_store_ps(unit->min_scale,
                  _mm512_mul_ps(_mm512_cvtepi32_ps(negative), _mm512_load_ps(unit->scale)));
}

struct alignas(64) Index {
  uint8_t bytes[4][64];
};

// index[v][n] = the value that byte n of vector v holds.
template <typename Order>
constexpr Index MakeIndex(Order order) {
  Index index = {};
  for (int v = 0; v < 4; ++v) {
    for (int n = 0; n < 64; ++n) index.bytes[v][n] = static_cast<uint8_t>(order(v, n));
  }
  return index;
}

constexpr Index kGrid = MakeIndex([](int v, int n) { return 4 * n + v; });
constexpr Index kSixteen = MakeIndex([](int v, int n) { return 16 * (n / 4) + 4 * v + n % 4; });
constexpr Index kThirtyTwo = MakeIndex([](int v, int n) { return 32 * (n / 8) + 8 * v + n % 8; });

size_t Units(size_t n, size_t values_per_unit, size_t multiple) {
  const size_t units = (n + values_per_unit - 1) / values_per_unit;
  return (units + multiple - 1) / multiple * multiple;
}

void Zero(void* first, size_t bytes) { __builtin_memset(first, 0, bytes); }

// One step per 256 values.
void Prepare256(const float* x, size_t n, const Index& index, int offset, size_t multiple,
                void* activation) {
  auto* units = static_cast<ActivationUnit<4>*>(activation);
  const size_t used = n / 256;
  for (size_t u = 0; u < used; ++u) {
    alignas(64) int8_t q[256];
    const float step = Quantize(x + 256 * u, 256, q);
    for (int v = 0; v < 4; ++v) {
      _mm512_store_si512(units[u].q + 64 * v, Permute256(q, _mm512_load_si512(index.bytes[v])));
    }
    _mm512_store_ps(units[u].scale, _mm512_set1_ps(step));
    Finish(&units[u], offset);
  }
  Zero(units + used, (Units(n, 256, multiple) - used) * sizeof *units);
}

}  // namespace

size_t GridBytesAvx512(size_t n) { return Units(n, 256, 2) * sizeof(ActivationUnit<4>); }
size_t GridPairBytesAvx512(size_t n) { return Units(n, 512, 1) * sizeof(ActivationUnit<8>); }
size_t SixteenBytesAvx512(size_t n) { return Units(n, 256, 4) * sizeof(ActivationUnit<4>); }
size_t ThirtyTwoBytesAvx512(size_t n) { return Units(n, 256, 1) * sizeof(ActivationUnit<4>); }

void PrepareGridAvx512(const float* x, size_t n, void* activation) {
  Prepare256(x, n, kGrid, 64, 2, activation);
}

void PrepareSixteenAvx512(const float* x, size_t n, void* activation) {
  Prepare256(x, n, kSixteen, 1, 4, activation);
}

void PrepareGridPairAvx512(const float* x, size_t n, void* activation) {
  auto* units = static_cast<ActivationUnit<8>*>(activation);
  for (size_t first = 0; first < n; first += 512, ++units) {
    alignas(64) int8_t q[512] = {};
    const float step0 = Quantize(x + first, 256, q);
    const float step1 = first + 256 < n ? Quantize(x + first + 256, 256, q + 256) : 0.0f;
    __m512i index = _mm512_setzero_si512();
    for (int n8 = 0; n8 < 64; ++n8) {
      reinterpret_cast<uint8_t*>(&index)[n8] = static_cast<uint8_t>(8 * (n8 % 32));
    }
    for (int v = 0; v < 8; ++v) {
      const __m512i block0 = Permute256(q, index), block1 = Permute256(q + 256, index);
      _mm512_store_si512(units->q + 64 * v, _mm512_mask_blend_epi64(0xf0, block0, block1));
      index = _mm512_add_epi8(index, _mm512_set1_epi8(1));
    }
    _mm512_store_ps(units->scale,
                    _mm512_mask_blend_ps(0xff00, _mm512_set1_ps(step0), _mm512_set1_ps(step1)));
    Finish(units, 64);
  }
}

void PrepareThirtyTwoAvx512(const float* x, size_t n, void* activation) {
  auto* units = static_cast<ActivationUnit<4>*>(activation);
  for (size_t first = 0; first < n; first += 256, ++units) {
    alignas(64) int8_t q[256] = {};
    Zero(units->scale, sizeof units->scale);
    for (size_t block = 0; block < 8 && first + 32 * block < n; ++block) {
      const float step = Quantize(x + first + 32 * block, 32, q + 32 * block);
      units->scale[2 * block] = units->scale[2 * block + 1] = step;
    }
    for (int v = 0; v < 4; ++v) {
      _mm512_store_si512(units->q + 64 * v, Permute256(q, _mm512_load_si512(kThirtyTwo.bytes[v])));
    }
    Finish(units, 1);
  }
}

}  // namespace packtrain

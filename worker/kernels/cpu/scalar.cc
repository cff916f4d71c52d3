// Kernels without vector instructions, and the judge of the others: f32 activations as they come,
// weights through the reference decoder.

#include <algorithm>
#include <cstring>

#include "common/quant/codec.h"
#include "worker/kernels/cpu/variants.h"

namespace packtrain {
namespace {

using enum TensorType;

// Weights decoded at a time: a multiple of every block size.
constexpr size_t kChunk = 256;

size_t ActivationBytes(size_t n) { return (n * sizeof(float) + 63) / 64 * 64; }

void Prepare(const float* x, size_t n, void* activation) {
  std::memcpy(activation, x, n * sizeof(float));
}

// Four lanes of the compiler's baseline; what sanitizers check, they check once for all four.
typedef float Reg __attribute__((vector_size(16)));

Reg Load(const float* p) {
  Reg v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

// The first `count` of four; zero behind them.
Reg LoadPart(const float* p, size_t count) {
  Reg v = {};
  std::memcpy(&v, p, count * sizeof(float));
  return v;
}

float Dot(const float* w, const float* x, size_t count) {
  Reg low = {}, high = {};
  size_t i = 0;
  for (; i + 8 <= count; i += 8) {
    low += Load(w + i) * Load(x + i);
    high += Load(w + i + 4) * Load(x + i + 4);
  }
  if (const size_t rest = count - i; rest > 0) {
    const size_t first = std::min<size_t>(rest, 4);
    low += LoadPart(w + i, first) * LoadPart(x + i, first);
    high += LoadPart(w + i + first, rest - first) * LoadPart(x + i + first, rest - first);
  }
  return ((low[0] + low[1]) + (low[2] + low[3])) + ((high[0] + high[1]) + (high[2] + high[3]));
}

template <TensorType kType>
void MatMul(const void* w, size_t rows, size_t n, const void* const* activations, size_t tokens,
            float* const* y) {
  const size_t row_bytes = RowBytes(kType, n);
  for (size_t r = 0; r < rows; ++r) {
    const auto* row = static_cast<const uint8_t*>(w) + r * row_bytes;
    for (size_t t = 0; t < tokens; ++t) y[t][r] = 0;
    for (size_t first = 0; first < n; first += kChunk) {
      const size_t count = std::min(kChunk, n - first);
      float weights[kChunk];
      Decode(kType, row + RowBytes(kType, first), count, weights);
      for (size_t t = 0; t < tokens; ++t) {
        y[t][r] += Dot(weights, static_cast<const float*>(activations[t]) + first, count);
      }
    }
  }
}

struct Entry {
  TensorType type;
  WeightKernel kernel;
};

template <TensorType kType>
constexpr Entry MakeEntry() {
  return {kType, {0, ActivationBytes, Prepare, MatMul<kType>}};
}

constexpr Entry kEntries[] = {
    MakeEntry<kF32>(),    MakeEntry<kF16>(),     MakeEntry<kBF16>(),    MakeEntry<kF64>(),
    MakeEntry<kQ4_0>(),   MakeEntry<kQ4_1>(),    MakeEntry<kQ5_0>(),    MakeEntry<kQ5_1>(),
    MakeEntry<kQ8_0>(),   MakeEntry<kQ8_1>(),    MakeEntry<kQ2_K>(),    MakeEntry<kQ3_K>(),
    MakeEntry<kQ4_K>(),   MakeEntry<kQ5_K>(),    MakeEntry<kQ6_K>(),    MakeEntry<kQ8_K>(),
    MakeEntry<kIQ1_S>(),  MakeEntry<kIQ1_M>(),   MakeEntry<kIQ2_XXS>(), MakeEntry<kIQ2_XS>(),
    MakeEntry<kIQ2_S>(),  MakeEntry<kIQ3_XXS>(), MakeEntry<kIQ3_S>(),   MakeEntry<kIQ4_NL>(),
    MakeEntry<kIQ4_XS>(), MakeEntry<kTQ1_0>(),   MakeEntry<kTQ2_0>(),   MakeEntry<kQ1_0>(),
    MakeEntry<kQ2_0>(),   MakeEntry<kMXFP4>(),   MakeEntry<kNVFP4>(),
};

}  // namespace

const WeightKernel* ScalarWeightKernel(TensorType type) {
  for (const Entry& entry : kEntries) {
    if (entry.type == type) return &entry.kernel;
  }
  return nullptr;
}

}  // namespace packtrain

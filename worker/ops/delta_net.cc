#include "worker/ops/delta_net.h"

#include <algorithm>
#include <cmath>

#include "absl/container/inlined_vector.h"
#include "worker/ops/vector_math.h"

namespace packtrain {

void CausalConv(const VectorOps& ops, const float* u, size_t rows, size_t channels, size_t kernel,
                const float* taps, size_t first, size_t last, float* history, float* y) {
  const size_t before = kernel - 1;
  // Inputs in order of time: the history, then u.
  const auto input = [&](size_t i) {
    return (i < before ? history + i * channels : u + (i - before) * channels) + first;
  };
  absl::InlinedVector<const float*, 8> inputs(kernel);
  for (size_t t = 0; t < rows; ++t) {
    for (size_t j = 0; j < kernel; ++j) inputs[j] = input(t + j);
    ops.conv_silu(inputs.data(), taps + first, kernel, channels, last - first,
                  y + t * channels + first);
  }
  for (size_t j = 0; j < before; ++j) {
    std::copy_n(input(rows + j), last - first, history + j * channels + first);
  }
}

void L2Normalise(const float* x, float eps, size_t n, float* y) {
  const float scale = 1.0F / std::sqrt(Dot(x, x, n) + eps);
  for (size_t i = 0; i < n; ++i) y[i] = x[i] * scale;
}

}  // namespace packtrain

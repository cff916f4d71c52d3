#include "worker/ops/delta_net.h"

#include <algorithm>
#include <cmath>

#include "worker/ops/vector_math.h"

namespace packtrain {

void CausalConv(const float* u, size_t rows, size_t channels, size_t kernel, const float* taps,
                size_t first, size_t last, float* history, float* y) {
  for (size_t t = 0; t < rows; ++t) {
    const float* current = u + t * channels;
    for (size_t c = first; c < last; ++c) {
      float sum = 0;
      for (size_t j = 0; j + 1 < kernel; ++j)
        sum += taps[c * kernel + j] * history[j * channels + c];
      sum += taps[c * kernel + kernel - 1] * current[c];
      y[t * channels + c] = Silu(sum);
    }
    for (size_t j = 0; j + 2 < kernel; ++j) {
      std::copy(history + (j + 1) * channels + first, history + (j + 1) * channels + last,
                history + j * channels + first);
    }
    std::copy(current + first, current + last, history + (kernel - 2) * channels + first);
  }
}

void DeltaRule(const float* q, const float* k, const float* v, float log_decay, float beta,
               size_t dim, float* state, float* d, float* out) {
  const float decay = std::exp(log_decay);
  std::fill_n(d, dim, 0.0F);
  for (size_t i = 0; i < dim; ++i) {
    Scale(state + i * dim, decay, dim);
    AddScaled(d, state + i * dim, k[i], dim);
  }
  for (size_t j = 0; j < dim; ++j) d[j] = beta * (v[j] - d[j]);
  std::fill_n(out, dim, 0.0F);
  for (size_t i = 0; i < dim; ++i) {
    AddScaled(state + i * dim, d, k[i], dim);
    AddScaled(out, state + i * dim, q[i], dim);
  }
}

void L2Normalise(const float* x, float eps, size_t n, float* y) {
  const float scale = 1.0F / std::sqrt(Dot(x, x, n) + eps);
  for (size_t i = 0; i < n; ++i) y[i] = x[i] * scale;
}

}  // namespace packtrain

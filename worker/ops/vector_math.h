#pragma once

// Loops over float vectors in one fixed order of additions, whatever the caller's grouping.
// Written with the compilers' vector extension: the same bits on every instruction set.

#include <cmath>
#include <cstddef>
#include <cstring>

namespace packtrain {

using Float4 = float __attribute__((vector_size(16)));

inline Float4 LoadFloat4(const float* p) {
  Float4 v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}

inline void StoreFloat4(float* p, Float4 v) { std::memcpy(p, &v, sizeof(v)); }

// sum over i of a[i] * b[i]: 16 running sums, added up in pairs, then the rest in order.
inline float Dot(const float* a, const float* b, size_t n) {
  Float4 s0 = {}, s1 = {}, s2 = {}, s3 = {};
  size_t i = 0;
  for (; i + 16 <= n; i += 16) {
    s0 += LoadFloat4(a + i) * LoadFloat4(b + i);
    s1 += LoadFloat4(a + i + 4) * LoadFloat4(b + i + 4);
    s2 += LoadFloat4(a + i + 8) * LoadFloat4(b + i + 8);
    s3 += LoadFloat4(a + i + 12) * LoadFloat4(b + i + 12);
  }
  const Float4 s = (s0 + s1) + (s2 + s3);
  float sum = (s[0] + s[1]) + (s[2] + s[3]);
  for (; i < n; ++i) sum += a[i] * b[i];
  return sum;
}

// y[i] += factor * x[i]
inline void AddScaled(float* y, const float* x, float factor, size_t n) {
  size_t i = 0;
  for (; i + 4 <= n; i += 4) {
    StoreFloat4(y + i, LoadFloat4(y + i) + factor * LoadFloat4(x + i));
  }
  for (; i < n; ++i) y[i] += factor * x[i];
}

// y[i] += x[i]
inline void Add(float* y, const float* x, size_t n) {
  for (size_t i = 0; i < n; ++i) y[i] += x[i];
}

// y[i] *= factor
inline void Scale(float* y, float factor, size_t n) {
  for (size_t i = 0; i < n; ++i) y[i] *= factor;
}

inline float Sigmoid(float x) { return 1.0F / (1.0F + std::exp(-x)); }
inline float Softplus(float x) { return x > 20.0F ? x : std::log1p(std::exp(x)); }

// y = w * (x - mean) / sqrt(variance + eps) + b; y may be x.
inline void LayerNorm(const float* x, const float* w, const float* b, float eps, size_t n,
                      float* y) {
  float sum = 0;
  for (size_t i = 0; i < n; ++i) sum += x[i];
  const float mean = sum / static_cast<float>(n);
  float squares = 0;
  for (size_t i = 0; i < n; ++i) squares += (x[i] - mean) * (x[i] - mean);
  const float scale = 1.0F / std::sqrt(squares / static_cast<float>(n) + eps);
  for (size_t i = 0; i < n; ++i) y[i] = (x[i] - mean) * scale * w[i] + b[i];
}

}  // namespace packtrain

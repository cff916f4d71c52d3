#pragma once

// The products of one weight type in one instruction set. See kernels.h; apart, because the files
// that are compiled for an instruction set must not pull in inline code that the linker merges.

#include <cstddef>

namespace packtrain {

// Products of one weight type's rows with activations.
struct WeightKernel {
  // Kernels with equal layouts read the same prepared activations, so they are prepared once.
  int activation_layout = 0;
  // Bytes of one prepared activation row of n values; a multiple of 64.
  size_t (*activation_bytes)(size_t n) = nullptr;
  // Converts x [n] f32 into `activation` (64-byte aligned). REQUIRES: n % block_weights == 0.
  void (*prepare)(const float* x, size_t n, void* activation) = nullptr;
  // y[t][r] = sum over i of w[r, i] * x_t[i]
  //   w            `rows` rows of n weights in the file's layout, one behind the other, any
  //   alignment activations  [tokens] pointers to prepared rows y            [tokens] pointers to
  //   `rows` f32 each, overwritten
  // tokens >= 1, any rows. Few tokens are bound by memory: one pass over w.
  void (*mat_mul)(const void* w, size_t rows, size_t n, const void* const* activations,
                  size_t tokens, float* const* y) = nullptr;
  // Rows of w that use many tokens' activations each time that these come from a cache.
  size_t panel_rows = 8;
};

}  // namespace packtrain

#pragma once

// A matrix of weights in memory that somebody else owns.

#include <cstddef>

#include "common/quant/type.h"

namespace packtrain {

// `rows` rows of `cols` weights, one behind the other, any alignment. Empty: the model has no such
// tensor.
struct MatrixView {
  TensorType type = TensorType::kF32;
  size_t rows = 0;
  size_t cols = 0;
  const std::byte* data = nullptr;

  bool empty() const { return data == nullptr; }
  size_t row_bytes() const { return RowBytes(type, cols); }
  size_t bytes() const { return rows * row_bytes(); }
  // REQUIRES: first + count <= rows.
  MatrixView Rows(size_t first, size_t count) const {
    return {.type = type, .rows = count, .cols = cols, .data = data + first * row_bytes()};
  }
};

}  // namespace packtrain

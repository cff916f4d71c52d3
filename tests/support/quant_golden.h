#pragma once

// Reader of tests/golden/quants: blocks, what the format's reference made of them, and dot
// products.

#include <cstdint>
#include <string>
#include <vector>

#include "common/quant/type.h"

namespace packtrain::testing {

struct QuantGolden {
  TensorType type;
  size_t rows = 0;
  size_t columns = 0;
  std::vector<float> source;           // rows that were quantised; only where an encoder exists
  std::vector<uint8_t> blocks;         // [rows] rows
  std::vector<uint64_t> decoded_hash;  // [rows] HashFloats of the decoded row
  std::vector<uint8_t> wide_blocks;    // a second group, with every finite scale pattern
  std::vector<uint64_t> wide_decoded_hash;
  std::vector<float> activation;           // [columns]
  std::vector<uint8_t> activation_blocks;  // the same, quantised
  std::vector<double> dot_exact;           // [rows] decoded row x activation
  std::vector<double> dot_quantized;       // [rows] decoded row x dequantised activation
  std::vector<double> abs_sum;             // [rows] sum of |w x|, the scale of tolerances
};

// `kind` is "quantised" (13 rows from the reference quantiser) or "random" (32 rows of random
// blocks).
QuantGolden ReadQuantGolden(const std::string& kind, TensorType type);

// FNV-1a over the bytes of the floats.
uint64_t HashFloats(const float* values, size_t count);

// The 30 types that have golden files.
std::vector<TensorType> GoldenTypes();

}  // namespace packtrain::testing

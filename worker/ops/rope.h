#pragma once

// Rotary position embedding.

#include <cstdint>
#include <span>
#include <vector>

#include "common/model/config.h"

namespace packtrain {

// Radians per position of every pair, with YaRN already in: [dims / 2].
std::vector<double> RopeFrequencies(const RopeConfig& config);

class Rope {
 public:
  explicit Rope(const RopeConfig& config) : frequencies_(RopeFrequencies(config)) {}

  int dims() const { return static_cast<int>(frequencies_.size()) * 2; }

  // Cosines and sines of every position, computed once per ubatch; angles in double.
  void SetPositions(std::span<const int32_t> positions);

  // Rotates x [dims()] as at positions[row] of the last SetPositions.
  void Apply(RopeKind kind, size_t row, float* x) const;

 private:
  std::vector<double> frequencies_;  // radians per position, per pair
  std::vector<float> cos_, sin_;     // [rows, dims / 2]
};

}  // namespace packtrain

#include "worker/ops/rope.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace packtrain {
namespace {

// YaRN: pairs that turn often within the original context keep their speed, slow ones are slowed.
// Returns the share of the original speed. Rotations 32 and 1 bound the ramp.
double YarnRamp(const RopeConfig& config, int pair) {
  const double dims = config.dims;
  const auto pair_of = [&](double rotations) {
    return dims * std::log(config.original_context / (rotations * 2 * std::numbers::pi)) /
           (2 * std::log(static_cast<double>(config.base)));
  };
  const double low = std::max(0.0, std::floor(pair_of(32)));
  const double high = std::min(dims - 1, std::ceil(pair_of(1)));
  return 1.0 - std::clamp((pair - low) / std::max(0.001, high - low), 0.0, 1.0);
}

}  // namespace

std::vector<double> RopeFrequencies(const RopeConfig& config) {
  std::vector<double> frequencies;
  for (int pair = 0; pair < config.dims / 2; ++pair) {
    const double full = std::pow(static_cast<double>(config.base), -2.0 * pair / config.dims);
    const double slow = full / config.factor;
    const double share = config.yarn ? YarnRamp(config, pair) : 0.0;
    frequencies.push_back(full * share + slow * (1.0 - share));
  }
  return frequencies;
}

void Rope::SetPositions(std::span<const int32_t> positions) {
  const size_t pairs = frequencies_.size();
  cos_.resize(positions.size() * pairs);
  sin_.resize(positions.size() * pairs);
  for (size_t row = 0; row < positions.size(); ++row) {
    for (size_t pair = 0; pair < pairs; ++pair) {
      const double angle = positions[row] * frequencies_[pair];
      cos_[row * pairs + pair] = static_cast<float>(std::cos(angle));
      sin_[row * pairs + pair] = static_cast<float>(std::sin(angle));
    }
  }
}

void Rope::Apply(RopeKind kind, size_t row, float* x) const {
  const size_t pairs = frequencies_.size();
  const float* cos = cos_.data() + row * pairs;
  const float* sin = sin_.data() + row * pairs;
  const size_t step = kind == RopeKind::kNorm ? 2 : 1;
  const size_t distance = kind == RopeKind::kNorm ? 1 : pairs;
  for (size_t pair = 0; pair < pairs; ++pair) {
    float& first = x[pair * step];
    float& second = x[pair * step + distance];
    const float a = first, b = second;
    first = a * cos[pair] - b * sin[pair];
    second = a * sin[pair] + b * cos[pair];
  }
}

}  // namespace packtrain

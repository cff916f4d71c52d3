#pragma once

// What workers are given of a model.

#include <cstdint>

namespace packtrain {

// Half-open: [first, last). People write and read "26-51", both inclusive.
struct LayerRange {
  int first = 0;
  int last = 0;

  int size() const { return last - first; }
  bool empty() const { return last <= first; }
  bool operator==(const LayerRange&) const = default;
};

enum class WorkerRole : uint8_t { kStage, kExperts };

}  // namespace packtrain

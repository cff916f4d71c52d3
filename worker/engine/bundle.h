#pragma once

// What one hop between stages carries: a few named tensors. Memory is the bundle's own and is kept
// from step to step.

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "worker/engine/bundle_memory.h"

namespace packtrain {

enum class ElementType : uint8_t { kF32 = 0, kI32 = 1, kBF16 = 2, kU8 = 3 };

inline constexpr size_t ElementBytes(ElementType type) {
  switch (type) {
    case ElementType::kF32:
    case ElementType::kI32:
      return 4;
    case ElementType::kBF16:
      return 2;
    case ElementType::kU8:
      return 1;
  }
  return 0;
}

struct BundleTensor {
  std::string name;
  ElementType type = ElementType::kF32;
  uint32_t rows = 0;
  uint32_t cols = 0;
  std::vector<std::byte, BundleAllocator<std::byte>> data;  // rows * cols elements, row-major
  // Not null: they lie here instead, in the memory of this worker's GPU; borrowed.
  std::byte* device = nullptr;

  size_t bytes() const { return size_t{rows} * cols * ElementBytes(type); }
  float* f32() { return reinterpret_cast<float*>(data.data()); }
  const float* f32() const { return reinterpret_cast<const float*>(data.data()); }
  int32_t* i32() { return reinterpret_cast<int32_t*>(data.data()); }
  const int32_t* i32() const { return reinterpret_cast<const int32_t*>(data.data()); }
};

struct Bundle {
  uint64_t epoch = 0;
  uint64_t step_id = 0;
  absl::Status error;  // not OK: the sender's step failed; there are no tensors
  std::vector<BundleTensor> tensors;
  // Of this worker's GPU, lent by the link that will send the bundle, for tensors that a stage has
  // there anyway. Empty: all tensors lie in `data`.
  std::span<std::byte> device_memory;
  size_t device_from_bytes = 0;  // tensors of fewer bytes lie in `data` all the same

  const BundleTensor* Find(std::string_view name) const {
    for (const BundleTensor& t : tensors) {
      if (t.name == name) return &t;
    }
    return nullptr;
  }
  // Whether a tensor of so many bytes belongs into device_memory.
  bool OnDevice(size_t bytes) const {
    return bytes >= device_from_bytes && bytes <= device_memory.size();
  }
  // Resizes tensor number `index`, keeping its memory.
  BundleTensor* Shape(size_t index, std::string_view name, ElementType type, uint32_t rows,
                      uint32_t cols) {
    BundleTensor* t = Describe(index, name, type, rows, cols);
    t->device = nullptr;
    t->data.resize(t->bytes());
    return t;
  }
  // The same for one that lies at `device`.
  void ShapeOnDevice(size_t index, std::string_view name, ElementType type, uint32_t rows,
                     uint32_t cols, std::byte* device) {
    BundleTensor* t = Describe(index, name, type, rows, cols);
    t->device = device;
    t->data.clear();
  }

 private:
  BundleTensor* Describe(size_t index, std::string_view name, ElementType type, uint32_t rows,
                         uint32_t cols) {
    if (tensors.size() <= index) tensors.resize(index + 1);
    BundleTensor* t = &tensors[index];
    t->name = name;
    t->type = type;
    t->rows = rows;
    t->cols = cols;
    return t;
  }
};

}  // namespace packtrain

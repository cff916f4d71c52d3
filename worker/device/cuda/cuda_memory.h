#pragma once

// Memory of one CUDA device, planned first and allocated at once, so that what does not fit is
// refused before anything is loaded.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string_view>
#include <type_traits>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace packtrain {

// OK, or INTERNAL with the CUDA error's text behind `what`.
absl::Status CudaStatus(int code, std::string_view what);

#define RETURN_IF_CUDA(call) RETURN_IF_ERROR(::packtrain::CudaStatus(static_cast<int>(call), #call))

// One allocation that serves many arrays. Not thread-safe.
class DevicePlan {
 public:
  DevicePlan() = default;
  ~DevicePlan();
  DevicePlan(const DevicePlan&) = delete;
  DevicePlan& operator=(const DevicePlan&) = delete;

  // *pointer is set by Allocate: `count` elements, 256-byte aligned, 16 readable bytes behind them.
  template <typename T>
  void Add(T** pointer, size_t count) {
    AddBytes(reinterpret_cast<void**>(const_cast<std::remove_const_t<T>**>(pointer)),
             count * sizeof(T));
  }
  size_t bytes() const { return bytes_; }
  // Once. The memory is zeroed if `zero`. Errors: RESOURCE_EXHAUSTED.
  absl::Status Allocate(std::string_view purpose, bool zero);

 private:
  struct Entry {
    void** pointer;
    size_t offset;
  };
  void AddBytes(void** pointer, size_t bytes);

  std::vector<Entry> entries_;
  size_t bytes_ = 0;
  void* memory_ = nullptr;
};

// Page-locked host memory, for asynchronous copies.
class PinnedMemory {
 public:
  static absl::StatusOr<std::unique_ptr<PinnedMemory>> Allocate(size_t bytes);
  ~PinnedMemory();
  PinnedMemory(const PinnedMemory&) = delete;
  PinnedMemory& operator=(const PinnedMemory&) = delete;

  std::byte* data() const { return data_; }
  size_t bytes() const { return bytes_; }

 private:
  PinnedMemory(std::byte* data, size_t bytes) : data_(data), bytes_(bytes) {}
  std::byte* data_;
  size_t bytes_;
};

}  // namespace packtrain

#pragma once

// Memory of bundles' tensors: not zeroed, because it is always filled, and in a worker with a GPU
// pinned, so that the GPU copies to and from it without a detour.

#include <cstddef>
#include <functional>
#include <new>
#include <utility>

namespace packtrain {

// What makes memory fit for a GPU's copies and what ends that; whole pages. Pinning that fails
// costs speed only.
struct HostPinning {
  std::function<void(void* data, size_t bytes)> pin;
  std::function<void(void* data)> unpin;
};
// Of all large bundles that this process has from now on, before other threads use any. Libraries
// that are loaded have this code for themselves and must be told, too.
void SetBundlePinning(HostPinning pinning);

void* AllocateBundleMemory(size_t bytes);
void FreeBundleMemory(void* data, size_t bytes);

template <typename T>
struct BundleAllocator {
  using value_type = T;
  BundleAllocator() = default;
  template <typename U>
  explicit BundleAllocator(const BundleAllocator<U>&) {}
  T* allocate(size_t n) { return static_cast<T*>(AllocateBundleMemory(n * sizeof(T))); }
  void deallocate(T* data, size_t n) { FreeBundleMemory(data, n * sizeof(T)); }
  template <typename U>
  void construct(U* at) {
    ::new (static_cast<void*>(at)) U;
  }
  template <typename U, typename... Args>
  void construct(U* at, Args&&... args) {
    ::new (static_cast<void*>(at)) U(std::forward<Args>(args)...);
  }
  bool operator==(const BundleAllocator&) const { return true; }
};

}  // namespace packtrain

#include "worker/engine/bundle_memory.h"

namespace packtrain {
namespace {

constexpr size_t kPage = 4096;
// Smaller tensors travel in copies that take no time.
constexpr size_t kPagesFrom = 16 << 10;

HostPinning& Pinning() {
  static auto* pinning = new HostPinning;  // outlives every bundle
  return *pinning;
}

// Two tensors never share a page: one could not be pinned then.
size_t WholePages(size_t bytes) { return (bytes + kPage - 1) / kPage * kPage; }

}  // namespace

void SetBundlePinning(HostPinning pinning) { Pinning() = std::move(pinning); }

void* AllocateBundleMemory(size_t bytes) {
  if (bytes < kPagesFrom) return ::operator new(bytes);
  void* data = ::operator new (WholePages(bytes), std::align_val_t{kPage});
  if (Pinning().pin) Pinning().pin(data, WholePages(bytes));
  return data;
}

void FreeBundleMemory(void* data, size_t bytes) {
  if (bytes < kPagesFrom) {
    ::operator delete(data);
    return;
  }
  if (Pinning().unpin) Pinning().unpin(data);
  ::operator delete (data, std::align_val_t{kPage});
}

}  // namespace packtrain

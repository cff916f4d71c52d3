#include "worker/transport/shm/ring.h"

#include <algorithm>
#include <cstring>
#include <new>
#include <utility>

namespace packtrain {
namespace {

constexpr uint64_t kMagic = 0x31474e4952545026;
constexpr size_t kHeaderBytes = 4096;
// The reader copies a piece out while the next one is copied in.
constexpr uint64_t kPieceBytes = 1 << 20;

}  // namespace

ShmRing::ShmRing(std::unique_ptr<SharedRegion> region, uint64_t capacity,
                 std::chrono::nanoseconds spin)
    : region_(std::move(region)),
      header_(reinterpret_cast<Header*>(region_->data())),
      bytes_(region_->data() + kHeaderBytes),
      capacity_(capacity),
      spin_(spin) {
  static_assert(sizeof(Header) <= kHeaderBytes);
  static_assert(std::atomic<uint64_t>::is_always_lock_free);
}

size_t ShmRing::RegionBytes(size_t capacity) { return kHeaderBytes + capacity; }

void ShmRing::Initialize(std::byte* data, size_t bytes) {
  auto* header = new (data) Header{};
  header->capacity = bytes - kHeaderBytes;
  header->magic = kMagic;
}

absl::StatusOr<std::unique_ptr<ShmRing>> ShmRing::Attach(std::unique_ptr<SharedRegion> region,
                                                         std::chrono::nanoseconds spin) {
  if (region->size() <= kHeaderBytes) return absl::DataLossError("shared ring is too small");
  const auto* header = reinterpret_cast<const Header*>(region->data());
  const uint64_t capacity = region->size() - kHeaderBytes;
  if (header->magic != kMagic || header->capacity != capacity) {
    return absl::DataLossError("shared ring has another layout");
  }
  return std::unique_ptr<ShmRing>(new ShmRing(std::move(region), capacity, spin));
}

absl::Status ShmRing::Write(const void* data, size_t bytes, Deadline deadline) {
  const auto* from = static_cast<const std::byte*>(data);
  while (bytes > 0) {
    uint64_t used = position_ - header_->read.load(std::memory_order_acquire);
    if (used >= capacity_) {
      if (used > capacity_) return absl::DataLossError("shared ring: reader passed the writer");
      Flush();
      const auto ready = [this] {
        return position_ - header_->read.load(std::memory_order_acquire) < capacity_ ||
               header_->closed.load(std::memory_order_relaxed) != 0;
      };
      if (!WaitShared(&header_->space, &spin_, deadline, ready, [this] { return alive(); })) {
        return alive() ? absl::DeadlineExceededError("the receiver is too slow")
                       : absl::UnavailableError("the receiver is gone");
      }
      used = position_ - header_->read.load(std::memory_order_acquire);
    }
    if (header_->closed.load(std::memory_order_relaxed) != 0) {
      return absl::UnavailableError("the link is closed");
    }
    if (used >= capacity_) continue;
    const uint64_t offset = position_ % capacity_;
    const size_t piece =
        std::min<uint64_t>({bytes, capacity_ - used, capacity_ - offset, kPieceBytes});
    std::memcpy(bytes_ + offset, from, piece);
    from += piece;
    bytes -= piece;
    position_ += piece;
    if (piece == kPieceBytes) {
      header_->written.store(position_, std::memory_order_seq_cst);
      if (header_->data.sleepers.load(std::memory_order_seq_cst) != 0) header_->data.Notify();
    }
  }
  return absl::OkStatus();
}

size_t ShmRing::room() const {
  const uint64_t used = position_ - header_->read.load(std::memory_order_acquire);
  if (header_->closed.load(std::memory_order_relaxed) != 0 || used > capacity_) return 0;
  return capacity_ - used;
}

void ShmRing::Flush() {
  header_->written.store(position_, std::memory_order_release);
  header_->data.Notify();
}

absl::Status ShmRing::Read(void* data, size_t bytes, Deadline deadline) {
  auto* to = static_cast<std::byte*>(data);
  while (bytes > 0) {
    uint64_t available = header_->written.load(std::memory_order_acquire) - position_;
    if (available == 0) {
      const auto ready = [this] {
        return header_->written.load(std::memory_order_acquire) != position_ ||
               header_->closed.load(std::memory_order_acquire) != 0;
      };
      if (!WaitShared(&header_->data, &spin_, deadline, ready, [this] { return alive(); })) {
        return alive() ? absl::DeadlineExceededError("nothing came in time")
                       : absl::UnavailableError("the sender is gone");
      }
      available = header_->written.load(std::memory_order_acquire) - position_;
      if (available == 0) return absl::UnavailableError("the link is closed");
    }
    if (available > capacity_) return absl::DataLossError("shared ring: impossible position");
    const uint64_t offset = position_ % capacity_;
    const size_t piece = std::min<uint64_t>({bytes, available, capacity_ - offset});
    std::memcpy(to, bytes_ + offset, piece);
    to += piece;
    bytes -= piece;
    position_ += piece;
    // Sequentially consistent, as a writer's look before it sleeps: it must not be missed.
    header_->read.store(position_, std::memory_order_seq_cst);
    // A writer sleeps only when the ring is full; waking it per piece would cost a call each.
    if (header_->space.sleepers.load(std::memory_order_seq_cst) != 0) header_->space.Notify();
  }
  return absl::OkStatus();
}

void ShmRing::Close() {
  header_->closed.store(1, std::memory_order_release);
  header_->data.Notify();
  header_->space.Notify();
}

}  // namespace packtrain

#pragma once

// A ring of bytes between one writer and one reader in different processes. What the other side
// writes into the header is treated as hostile: positions are checked before they are used.

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "worker/transport/shm/futex.h"
#include "worker/transport/shm/rendezvous.h"

namespace packtrain {

class ShmRing {
 public:
  using Deadline = std::chrono::steady_clock::time_point;

  // Bytes of shared memory for a ring of `capacity` bytes.
  static size_t RegionBytes(size_t capacity);
  // Makes zeroed memory an empty ring.
  static void Initialize(std::byte* data, size_t bytes);
  // Errors: DATA_LOSS if the region is not such a ring.
  static absl::StatusOr<std::unique_ptr<ShmRing>> Attach(std::unique_ptr<SharedRegion> region,
                                                         std::chrono::nanoseconds spin);

  // Copies all bytes in or out, in pieces as there is room. Errors: DEADLINE_EXCEEDED, UNAVAILABLE
  // if closed or the other process is gone, DATA_LOSS.
  absl::Status Write(const void* data, size_t bytes, Deadline deadline);
  absl::Status Read(void* data, size_t bytes, Deadline deadline);

  // How much Write can take now without waiting; 0 if closed.
  size_t room() const;

  // Makes written bytes visible to the reader. Write does so too with every full piece and whenever
  // the ring is full.
  void Flush();

  // Any thread, any number of times: both sides' calls end with UNAVAILABLE, but bytes written
  // before can still be read.
  void Close();

 private:
  struct Header {
    uint64_t magic;
    uint64_t capacity;
    alignas(64) std::atomic<uint64_t> written;
    alignas(64) std::atomic<uint64_t> read;
    alignas(64) SharedEvent data;
    alignas(64) SharedEvent space;
    alignas(64) std::atomic<uint32_t> closed;
  };

  ShmRing(std::unique_ptr<SharedRegion> region, uint64_t capacity, std::chrono::nanoseconds spin);
  bool alive() const { return region_->PeerAlive(); }

  std::unique_ptr<SharedRegion> region_;
  Header* header_;
  std::byte* bytes_;
  const uint64_t capacity_;  // our own copy; the header's could change
  SpinPredictor spin_;
  uint64_t position_ = 0;  // our own: written or read so far
};

}  // namespace packtrain

#pragma once

// A communicator of two ranks on a stream of its own, so that a chunk for a rank that is still busy
// holds up no layer. Nothing in it blocks: every wait looks at the communicator's state, at a
// deadline and at a word that calls it off, so a peer that died or hangs costs a link and never a
// worker. That the GPU is done it tells by a word in host memory: asking CUDA could wait for a lock
// that another thread's call keeps for as long as this communicator's own kernel runs.

#include <array>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "worker/device/cuda/cuda_memory.h"
#include "worker/transport/nccl/nccl_library.h"

struct CUstream_st;

namespace packtrain {

class NcclComm {
 public:
  using Clock = std::chrono::steady_clock;
  using Id = std::array<std::byte, NCCL_UNIQUE_ID_BYTES>;

  static absl::StatusOr<Id> NewId();

  // Both ranks call it with the same id; they are connected when it returns, so that later calls
  // allocate nothing. `closed` (borrowed) ends every wait with UNAVAILABLE when
  // it becomes true. Errors: FAILED_PRECONDITION without NCCL, DEADLINE_EXCEEDED, UNAVAILABLE with
  // NCCL's words.
  static absl::StatusOr<std::unique_ptr<NcclComm>> Join(const Id& id, int rank, int device,
                                                        const std::atomic<bool>* closed,
                                                        Clock::time_point deadline);
  // Waits for nobody: what the other rank has not received yet may be lost.
  ~NcclComm();
  NcclComm(const NcclComm&) = delete;
  NcclComm& operator=(const NcclComm&) = delete;

  // `data`, on the device, to the other rank or from it; return when it may be reused or is there.
  // An error aborts the communicator. One thread at a time.
  absl::Status Send(const std::byte* data, size_t bytes, Clock::time_point deadline);
  absl::Status Receive(std::byte* data, size_t bytes, Clock::time_point deadline);

 private:
  NcclComm(const NcclLibrary* nccl, int rank, int device, const std::atomic<bool>* closed)
      : nccl_(nccl), rank_(rank), device_(device), closed_(closed) {}
  absl::Status Start(const Id& id, Clock::time_point deadline);
  // After a call that was begun: waits until the GPU has done it.
  absl::Status Finish(std::string_view what, Clock::time_point deadline);
  absl::Status Begun(int code, std::string_view what, Clock::time_point deadline);
  // Until NCCL has nothing left to set up and the GPU has done `calls` calls.
  absl::Status Wait(std::string_view what, uint32_t calls, Clock::time_point deadline);
  absl::Status Error(std::string_view what, int code) const;
  absl::Status Abort(absl::Status why);

  const NcclLibrary* const nccl_;
  const int rank_, device_;
  const std::atomic<bool>* const closed_;
  ncclComm_t comm_ = nullptr;  // null after an error
  CUstream_st* stream_ = nullptr;
  std::unique_ptr<PinnedMemory> word_;
  std::atomic<uint32_t>* done_ = nullptr;  // in it: how many calls the GPU has done
  uint32_t calls_ = 0;
};

}  // namespace packtrain

#pragma once

// The experts of a CUDA stage that other workers compute. Where their mailbox is shared memory of
// this host the device posts and awaits by itself, in the stream; elsewhere the host does it
// between launches. Owned by the stage, used by its engine thread.

#include <chrono>
#include <functional>
#include <map>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/model/config.h"
#include "worker/device/cuda/cuda_memory.h"
#include "worker/engine/experts.h"
#include "worker/kernels/cuda/mailbox.h"

namespace packtrain {

struct CudaRun;
struct DeviceActivations;

// What the router chose.
struct DevicePicks {
  int32_t* ids = nullptr;    // [rows, top_k]
  float* weights = nullptr;  // [rows, top_k]
};

// The expert of every token: y [rows, hidden_dim], to be scaled by sigmoid(logit [rows]) unless
// that is null. Without y: there is none.
struct SharedExpert {
  float* y = nullptr;
  float* logit = nullptr;
};

class RemoteExperts {
 public:
  // `client` (may be null if no layer is added) outlives this.
  RemoteExperts(ExpertsClient* client, const ModelConfig& config, int max_tokens);
  ~RemoteExperts();
  RemoteExperts(const RemoteExperts&) = delete;
  RemoteExperts& operator=(const RemoteExperts&) = delete;

  bool has_client() const { return client_ != nullptr; }
  void Add(int layer) { layers_[layer] = nullptr; }

  // Finds the mailboxes that the client has now and registers their memory with CUDA, about 0.1 s
  // per GB, when they are not those of the step before. True: then what was recorded is void.
  // REQUIRES: nothing runs on the device. Errors: INTERNAL with CUDA's words, RESOURCE_EXHAUSTED.
  absl::StatusOr<bool> Follow();

  // What the step's requests share, to be uploaded to run->batch.mailbox_step before them.
  cuda::MailboxStep BeginStep(const CudaRun& run, uint64_t step_id);
  // y [rows, hidden_dim] := the picked experts' sum, plus the shared expert, which is enqueued by
  // `shared` while others work.
  void Enqueue(CudaRun* run, int layer, const DevicePicks& picks, const DeviceActivations& x,
               const std::function<SharedExpert()>& shared, float* y);
  // All requests of a step have been enqueued by a recording.
  void NoteReplay() { enqueued_ = num_mailbox_layers_; }
  // Waits for the stream: asleep while requests are out, and telling the device when nobody will
  // answer them.
  absl::Status Synchronize(cuda::Stream stream);
  // After Synchronize at the step's end. UNAVAILABLE, DEADLINE_EXCEEDED or the server's own error:
  // the step's results are void.
  absl::Status EndStep();

 private:
  struct Registered {
    std::shared_ptr<DeviceMailbox> mailbox;
    cuda::Mailbox addresses;
    bool in_step = false;
  };
  absl::Status Register(const std::shared_ptr<DeviceMailbox>& mailbox);
  absl::Status AllocateHost();
  void Release();
  const Registered* Find(int layer) const;
  uint32_t Awaited() const;
  void EnqueueOnDevice(CudaRun* run, const Registered& at, int layer, const DevicePicks& picks,
                       const DeviceActivations& x, const std::function<SharedExpert()>& shared,
                       float* y);
  void EnqueueOnHost(CudaRun* run, int layer, const DevicePicks& picks, const DeviceActivations& x,
                     const std::function<SharedExpert()>& shared, float* y);

  ExpertsClient* const client_;
  const ModelConfig& config_;
  const int max_tokens_;
  std::map<int, std::shared_ptr<DeviceMailbox>> layers_;  // null: by the host
  std::vector<Registered> registered_;                    // each once
  uint32_t num_mailbox_layers_ = 0;
  uint32_t enqueued_ = 0;  // requests by mailbox, of this step
  std::unique_ptr<PinnedMemory> report_;
  // x and y [max_tokens, hidden_dim], ids and weights [max_tokens, top_k] of host requests.
  std::unique_ptr<PinnedMemory> host_;
  float* host_x_ = nullptr;
  float* host_y_ = nullptr;
  int32_t* host_ids_ = nullptr;
  float* host_weights_ = nullptr;
};

}  // namespace packtrain

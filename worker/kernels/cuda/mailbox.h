#pragma once

// The device's side of the mailbox of an experts worker: posts a layer's work and awaits its reply
// from inside a stream, no host thread in between. Launchers as in kernels.h; the protocol's words
// are those of DeviceMailbox in worker/engine/experts.h.

#include <cstdint>

#include "worker/kernels/cuda/kernels.h"

namespace packtrain::cuda {

// Device addresses in mapped host memory.
struct Mailbox {
  uint64_t* request = nullptr;
  uint32_t* call = nullptr;  // [3]
  const uint64_t* reply = nullptr;
  const uint32_t* code = nullptr;
  const uint32_t* closed = nullptr;
  float* x = nullptr;  // x and y 16-byte aligned
  int32_t* ids = nullptr;
  float* weights = nullptr;
  const float* y = nullptr;
};

// What the requests of one step share, in device memory: zeros but for the bits that the host sets
// before the step.
struct MailboxStep {
  uint64_t bits = 0;  // of every word
  uint64_t waited_ns = 0;
  uint32_t awaited = 0;  // requests
  uint32_t failed = 0;   // not 0: a request has failed, later ones are not made
};

enum class MailboxFailure : uint32_t { kNone, kTimedOut, kClosed, kRefused };

// What the host learns of the step, in mapped host memory; it clears this before. `awaited` is
// written last.
struct MailboxReport {
  uint64_t waited_ns = 0;
  MailboxFailure failure = MailboxFailure::kNone;  // of the first request that failed
  uint32_t layer = 0;
  uint32_t code = 0;  // with kRefused
  uint32_t awaited = 0;
};

struct MailboxRequest {
  Mailbox mailbox;
  MailboxStep* step = nullptr;
  MailboxReport* report = nullptr;  // device address
  uint64_t word = 0;                // without the step's bits
  int layer = 0;
  int rows = 0;
  int top_k = 0;
  int n = 0;                       // values of a row
  const float* x = nullptr;        // [rows, n], 16-byte aligned
  const int32_t* ids = nullptr;    // [rows, top_k]
  const float* weights = nullptr;  // [rows, top_k]
  uint64_t timeout_ns = 0;
};

// Copies the request into the mailbox and publishes its word. Nothing if the step has failed.
int PostExperts(const MailboxRequest& request, Stream stream);

// Occupies one thread until the reply is there or never will be: past the timeout by %globaltimer,
// with `closed` set, with a code. Then the step has failed and the stream goes on.
int AwaitExperts(const MailboxRequest& request, Stream stream);

// y [rows, n] := the reply, zeros if the step has failed; with `shared` [rows, n] plus shared times
// sigmoid(logit [rows]), or times 1 without logit. y and shared 16-byte aligned.
int TakeExperts(const MailboxRequest& request, const float* shared, const float* logit, float* y,
                Stream stream);

}  // namespace packtrain::cuda

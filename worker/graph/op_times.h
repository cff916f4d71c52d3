#pragma once

// Where the time of a stage's steps goes, by kind of op.

#include <time.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>

namespace packtrain {

enum class OpKind : uint8_t {
  kIdle,  // between steps
  kEmbed,
  kNorm,
  kProjection,  // matrices of the attention, whatever its kind
  kAttention,
  kIndexer,
  kDeltaNet,
  kRouter,
  kExperts,
  kFfn,  // dense and shared experts
  kHead,
};

// At any moment one kind is running; Begin ends the kind before. One thread. By the wall clock, or
// by the processor time of all threads, which on a shared machine leaves out when others ran.
// Cost: a clock read per Begin; of processor time a system call.
class OpTimes {
 public:
  static constexpr size_t kNumKinds = static_cast<size_t>(OpKind::kHead) + 1;
  static constexpr std::array<std::string_view, kNumKinds> kNames = {
      "idle",     "embed",  "norm",    "projection", "attention", "indexer",
      "deltanet", "router", "experts", "ffn",        "head"};

  void Begin(OpKind kind) {
    const double now = Now();
    seconds_[static_cast<size_t>(kind_)] += now - since_;
    since_ = now;
    kind_ = kind;
  }

  // Since the last Reset, up to the last Begin.
  double seconds(OpKind kind) const { return seconds_[static_cast<size_t>(kind)]; }
  void Reset(clockid_t clock = CLOCK_MONOTONIC) {
    seconds_ = {};
    clock_ = clock;
    since_ = Now();
  }

 private:
  double Now() const {
    timespec now;
    clock_gettime(clock_, &now);
    return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
  }

  std::array<double, kNumKinds> seconds_ = {};
  clockid_t clock_ = CLOCK_MONOTONIC;
  OpKind kind_ = OpKind::kIdle;
  double since_ = Now();
};

}  // namespace packtrain

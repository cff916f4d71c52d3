#pragma once

// Waiting on a 32-bit word in memory that several processes share.

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>

namespace packtrain {

// Returns when woken, when the word no longer holds `expected`, after `timeout`, or for no reason.
void FutexWait(const std::atomic<uint32_t>& word, uint32_t expected,
               std::chrono::nanoseconds timeout);
void FutexWakeAll(const std::atomic<uint32_t>& word);

// A word that one side advances and the other sleeps on. Lives in shared memory, starts as zeros.
struct SharedEvent {
  std::atomic<uint32_t> sequence;
  std::atomic<uint32_t> sleepers;

  // After the data that the waiter looks for has been published.
  void Notify();
};

// How long a waiting end spins: until `budget` beyond the arrival that its last waits predict, not
// at all with a budget of 0. Arrivals that are far off are slept for until shortly before they are
// due, as they are when every stage of a pipeline takes its time in turn: that costs a core little
// and saves the wake-up. Spins in vain become rare: somebody else's work may keep the peer from its
// core, or we do. One thread.
class SpinPredictor {
 public:
  explicit SpinPredictor(std::chrono::nanoseconds budget) : budget_(budget) {}
  // Both from the beginning of the wait: it spins between them.
  std::chrono::nanoseconds nap() const;
  std::chrono::nanoseconds limit() const;
  void Observe(std::chrono::nanoseconds waited);

 private:
  bool rests() const { return budget_.count() == 0 || pause_ > 0; }
  bool naps() const;
  void ObserveFar(std::chrono::nanoseconds waited);

  const std::chrono::nanoseconds budget_;
  std::chrono::nanoseconds expected_{0};    // 0: not known, or far off
  std::chrono::nanoseconds far_{0};         // mean of the last waits, if these were long
  std::chrono::nanoseconds far_spread_{0};  // mean distance from it
  int pause_ = 0;                           // waits until the next that spins
  int next_pause_ = 0;                      // after the next spin in vain
};

inline constexpr std::chrono::nanoseconds kSharedSlice = std::chrono::milliseconds(20);

// Sleeps until woken, at most for `time`, unless `ready()` is true.
template <typename Ready>
void SleepShared(SharedEvent* event, std::chrono::nanoseconds time, const Ready& ready) {
  event->sleepers.fetch_add(1, std::memory_order_seq_cst);
  const uint32_t sequence = event->sequence.load(std::memory_order_seq_cst);
  if (!ready()) FutexWait(event->sequence, sequence, time);
  event->sleepers.fetch_sub(1, std::memory_order_relaxed);
}

// Waits until `ready()` is true: naps and spins as the predictor says, offering the core to others
// all the time, then sleeps in slices of `slice()`; `alive()` is asked once per slice. False if
// `deadline` passed or `alive()` said no.
template <typename Ready, typename Alive, typename Slice>
bool WaitShared(SharedEvent* event, SpinPredictor* spin,
                std::chrono::steady_clock::time_point deadline, const Ready& ready,
                const Alive& alive, const Slice& slice) {
  if (ready()) return true;
  const auto begin = std::chrono::steady_clock::now();
  if (spin->limit().count() > 0) {
    const auto until = std::min(deadline, begin + spin->limit());
    const auto nap_end = std::min(deadline, begin + spin->nap());
    auto now = begin;
    while (now < nap_end && !ready()) {
      SleepShared(event, std::min<std::chrono::nanoseconds>(nap_end - now, slice()), ready);
      now = std::chrono::steady_clock::now();
    }
    do {
      for (int i = 0; i < 16; ++i) {
        if (ready()) {
          spin->Observe(now - begin);
          return true;
        }
        __builtin_ia32_pause();
      }
      sched_yield();
      now = std::chrono::steady_clock::now();
    } while (now < until);
  }
  bool result = true;
  while (!ready()) {
    const auto left = deadline - std::chrono::steady_clock::now();
    if (left.count() <= 0 || !alive()) {
      result = ready();
      break;
    }
    SleepShared(event, std::min<std::chrono::nanoseconds>(left, slice()), ready);
  }
  spin->Observe(std::chrono::steady_clock::now() - begin);
  return result;
}

template <typename Ready, typename Alive>
bool WaitShared(SharedEvent* event, SpinPredictor* spin,
                std::chrono::steady_clock::time_point deadline, const Ready& ready,
                const Alive& alive) {
  return WaitShared(event, spin, deadline, ready, alive, [] { return kSharedSlice; });
}

}  // namespace packtrain

#pragma once

// Waiting on a 32-bit word in memory that several processes share.

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

// Waits until `ready()` is true: spins for `spin`, then sleeps in slices; `alive()` is asked once
// per slice. False if `deadline` passed or `alive()` said no.
template <typename Ready, typename Alive>
bool WaitShared(SharedEvent* event, std::chrono::nanoseconds spin,
                std::chrono::steady_clock::time_point deadline, const Ready& ready,
                const Alive& alive) {
  constexpr std::chrono::milliseconds kSlice(20);
  if (ready()) return true;
  if (spin.count() > 0) {
    const auto until = std::min(deadline, std::chrono::steady_clock::now() + spin);
    do {
      for (int i = 0; i < 64; ++i) {
        if (ready()) return true;
        __builtin_ia32_pause();
      }
    } while (std::chrono::steady_clock::now() < until);
  }
  event->sleepers.fetch_add(1, std::memory_order_seq_cst);
  bool result = true;
  while (true) {
    const uint32_t sequence = event->sequence.load(std::memory_order_seq_cst);
    if (ready()) break;
    const auto left = deadline - std::chrono::steady_clock::now();
    if (left.count() <= 0 || !alive()) {
      result = ready();
      break;
    }
    FutexWait(event->sequence, sequence, std::min<std::chrono::nanoseconds>(left, kSlice));
  }
  event->sleepers.fetch_sub(1, std::memory_order_relaxed);
  return result;
}

}  // namespace packtrain

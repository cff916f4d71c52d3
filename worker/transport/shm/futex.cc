#include "worker/transport/shm/futex.h"

#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <climits>

namespace packtrain {

// Not the private operations: the word belongs to several processes.
void FutexWait(const std::atomic<uint32_t>& word, uint32_t expected,
               std::chrono::nanoseconds timeout) {
  constexpr int64_t kSecond = 1'000'000'000;
  timespec time{.tv_sec = timeout.count() / kSecond, .tv_nsec = timeout.count() % kSecond};
  syscall(SYS_futex, &word, FUTEX_WAIT, expected, &time, nullptr, 0);
}

void FutexWakeAll(const std::atomic<uint32_t>& word) {
  syscall(SYS_futex, &word, FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
}

void SpinPredictor::Observe(std::chrono::nanoseconds waited) {
  // Beyond this a core is worth more than the wake-up.
  constexpr std::chrono::milliseconds kFarOff(2);
  constexpr int kPauseMax = 63;
  if (pause_ > 0) {
    --pause_;
  } else if (waited > limit()) {
    pause_ = next_pause_;
    next_pause_ = std::min(2 * next_pause_ + 1, kPauseMax);
  } else {
    next_pause_ = 0;
  }
  // Up slowly, down at once: a wait that is long by chance must not make us spin longer.
  const auto change = waited - expected_;
  expected_ = waited > kFarOff ? std::chrono::nanoseconds(0)
                               : expected_ + change / (waited > expected_ ? 8 : 2);
}

void SharedEvent::Notify() {
  sequence.fetch_add(1, std::memory_order_seq_cst);
  if (sleepers.load(std::memory_order_seq_cst) != 0) FutexWakeAll(sequence);
}

}  // namespace packtrain

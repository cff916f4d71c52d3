#include "worker/transport/shm/futex.h"

#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

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
  // Up at once, down slowly: a wait cut short by luck must not cost the next one its core.
  expected_ = waited > kFarOff     ? std::chrono::nanoseconds(0)
              : waited > expected_ ? waited
                                   : expected_ - (expected_ - waited) / 8;
}

void SharedEvent::Notify() {
  sequence.fetch_add(1, std::memory_order_seq_cst);
  if (sleepers.load(std::memory_order_seq_cst) != 0) FutexWakeAll(sequence);
}

}  // namespace packtrain

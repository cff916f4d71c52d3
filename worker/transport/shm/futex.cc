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

namespace {

using std::chrono::microseconds;
using std::chrono::milliseconds;

// Beyond this a core is worth more than the wake-up: the time until shortly before the predicted
// arrival is slept.
constexpr milliseconds kFarOff(2);
// Nobody's turn: the time says nothing of the next arrival.
constexpr milliseconds kIdle(100);
// A timer and the way out of the sleep take about this long in a virtual machine.
constexpr microseconds kWakeUp(120);
// Arrivals that are spread more than this are slept for.
constexpr microseconds kSpreadMax(100);

}  // namespace

bool SpinPredictor::naps() const { return far_.count() > 0 && far_spread_ <= kSpreadMax; }

std::chrono::nanoseconds SpinPredictor::nap() const {
  if (rests() || !naps()) return std::chrono::nanoseconds(0);
  return far_ - 2 * far_spread_ - kWakeUp;
}

std::chrono::nanoseconds SpinPredictor::limit() const {
  if (rests()) return std::chrono::nanoseconds(0);
  return (naps() ? far_ + 2 * far_spread_ : expected_) + budget_;
}

void SpinPredictor::ObserveFar(std::chrono::nanoseconds waited) {
  constexpr int kSmoothing = 4;
  if (waited <= kFarOff || waited > kIdle) {
    far_ = std::chrono::nanoseconds(0);
  } else if (far_.count() == 0) {
    far_ = waited;
    far_spread_ = 8 * kSpreadMax;  // of one nothing is known yet
  } else {
    const auto change = waited - far_;
    far_ += change / kSmoothing;
    far_spread_ += (std::chrono::abs(change) - far_spread_) / kSmoothing;
  }
}

void SpinPredictor::Observe(std::chrono::nanoseconds waited) {
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
  ObserveFar(waited);
  const auto change = waited - expected_;
  expected_ = waited > kFarOff ? std::chrono::nanoseconds(0)
                               : expected_ + change / (waited > expected_ ? 8 : 2);
}

void SharedEvent::Notify() {
  sequence.fetch_add(1, std::memory_order_seq_cst);
  if (sleepers.load(std::memory_order_seq_cst) != 0) FutexWakeAll(sequence);
}

}  // namespace packtrain

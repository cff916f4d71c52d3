#include "worker/ops/thread_pool.h"

#include <immintrin.h>
#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <chrono>
#include <utility>

#include "common/base/check.h"
#include "common/base/host_limits.h"

namespace packtrain {
namespace {

void BindThread(pthread_t thread, int cpu) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(static_cast<size_t>(cpu), &set);
  // A CPU that is offline or not allowed leaves the thread where it may run: slower, still right.
  pthread_setaffinity_np(thread, sizeof(set), &set);
}

// Calls `ready` until it is true or `limit` has passed; says which.
template <typename Ready>
bool SpinUntil(std::chrono::nanoseconds limit, Ready ready) {
  if (ready()) return true;
  if (limit.count() <= 0) return false;
  const auto end = std::chrono::steady_clock::now() + limit;
  do {
    for (int i = 0; i < 64; ++i) {
      if (ready()) return true;
      _mm_pause();
    }
  } while (std::chrono::steady_clock::now() < end);
  return ready();
}

}  // namespace

void CallPredictor::Observe(std::chrono::nanoseconds pause) {
  // Beyond this a core is worth more than the wake-up.
  constexpr std::chrono::milliseconds kFarOff(2);
  if (pause > kFarOff) return;
  pauses_[next_] = pause;
  next_ = (next_ + 1) % kRemembered;
  longest_ = *std::max_element(pauses_.begin(), pauses_.end());
}

ThreadPool::ThreadPool(ThreadPoolOptions options) {
  const int num_threads = options.num_threads > 0 ? options.num_threads : UsableCpus();
  spin_us_ = options.spin_us >= 0 ? options.spin_us : SpinBudget(num_threads, UsableCpus());
  idle_spin_ns_ = int64_t{1000} * spin_us_;
  threads_.reserve(static_cast<size_t>(num_threads - 1));
  for (int i = 1; i < num_threads; ++i) threads_.emplace_back([this, i] { RunThread(i); });
  if (options.cpus.empty()) return;
  for (size_t i = 1; i < static_cast<size_t>(num_threads); ++i) {
    BindThread(threads_[i - 1].native_handle(), options.cpus[i % options.cpus.size()]);
  }
}

ThreadPool::~ThreadPool() {
  stop_.store(true, std::memory_order_release);
  calls_.fetch_add(1, std::memory_order_release);
  calls_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

void ThreadPool::ParallelFor(int count, absl::FunctionRef<void(int, int)> task) {
  if (count <= 0) return;
  if (count == 1 || threads_.empty()) {
    for (int i = 0; i < count; ++i) task(i, 0);
    return;
  }
  CHECK(count <= kMaxTasks);
  if (spin_us_ > 0) {
    predictor_.Observe(std::chrono::steady_clock::now() - last_end_);
    const std::chrono::nanoseconds idle_spin =
        predictor_.longest_pause() + std::chrono::microseconds(spin_us_);
    idle_spin_ns_.store(idle_spin.count(), std::memory_order_relaxed);
  }
  finished_.store(0, std::memory_order_relaxed);
  task_.store(&task, std::memory_order_relaxed);
  call_.store(static_cast<uint64_t>(count) << 32, std::memory_order_release);
  calls_.fetch_add(1, std::memory_order_release);
  calls_.notify_all();
  finished_.fetch_add(RunTasks(0), std::memory_order_acq_rel);
  AwaitFinished(count);
  if (spin_us_ > 0) last_end_ = std::chrono::steady_clock::now();
}

void ThreadPool::AwaitFinished(int count) {
  for (;;) {
    const int32_t finished = finished_.load(std::memory_order_acquire);
    if (finished == count) return;
    if (!SpinUntil(std::chrono::microseconds(spin_us_),
                   [&] { return finished_.load(std::memory_order_acquire) != finished; })) {
      finished_.wait(finished, std::memory_order_acquire);
    }
  }
}

int ThreadPool::RunTasks(int thread) {
  int ran = 0;
  for (;;) {
    const uint64_t call = call_.fetch_add(1, std::memory_order_acq_rel);
    const auto count = static_cast<uint32_t>(call >> 32);
    const auto next = static_cast<uint32_t>(call);
    if (next >= count) return ran;
    (*task_.load(std::memory_order_relaxed))(static_cast<int>(next), thread);
    ++ran;
  }
}

void ThreadPool::AwaitCall(uint32_t seen) {
  const auto called = [&] { return calls_.load(std::memory_order_acquire) != seen; };
  const std::chrono::nanoseconds spin(idle_spin_ns_.load(std::memory_order_relaxed));
  if (!SpinUntil(spin, called)) calls_.wait(seen, std::memory_order_acquire);
}

void ThreadPool::RunThread(int thread) {
  uint32_t seen = 0;
  for (;;) {
    AwaitCall(seen);
    if (stop_.load(std::memory_order_acquire)) return;
    seen = calls_.load(std::memory_order_acquire);
    const int ran = RunTasks(thread);
    if (ran == 0) continue;
    finished_.fetch_add(ran, std::memory_order_acq_rel);
    finished_.notify_one();
  }
}

}  // namespace packtrain

#include "worker/ops/thread_pool.h"

#include <immintrin.h>
#include <pthread.h>
#include <sched.h>

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

// Calls `ready` until it is true or `spin_us` have passed; says which.
template <typename Ready>
bool SpinUntil(int spin_us, Ready ready) {
  if (ready()) return true;
  if (spin_us <= 0) return false;
  const auto end = std::chrono::steady_clock::now() + std::chrono::microseconds(spin_us);
  do {
    for (int i = 0; i < 64; ++i) {
      if (ready()) return true;
      _mm_pause();
    }
  } while (std::chrono::steady_clock::now() < end);
  return ready();
}

}  // namespace

ThreadPool::ThreadPool(ThreadPoolOptions options) {
  int num_threads = options.num_threads > 0 ? options.num_threads : UsableCpus();
  spin_us_ = options.spin_us >= 0 ? options.spin_us : SpinBudget(num_threads, UsableCpus());
  threads_.reserve(static_cast<size_t>(num_threads - 1));
  for (int i = 1; i < num_threads; ++i) threads_.emplace_back([this, i] { RunThread(i); });
  if (options.cpus.empty()) return;
  for (size_t i = 0; i < static_cast<size_t>(num_threads); ++i) {
    BindThread(i == 0 ? pthread_self() : threads_[i - 1].native_handle(),
               options.cpus[i % options.cpus.size()]);
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
  finished_.store(0, std::memory_order_relaxed);
  task_.store(&task, std::memory_order_relaxed);
  call_.store(static_cast<uint64_t>(count) << 32, std::memory_order_release);
  calls_.fetch_add(1, std::memory_order_release);
  calls_.notify_all();
  finished_.fetch_add(RunTasks(0), std::memory_order_acq_rel);
  for (;;) {
    const int32_t finished = finished_.load(std::memory_order_acquire);
    if (finished == count) return;
    if (!SpinUntil(spin_us_,
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
  if (!SpinUntil(spin_us_, called)) calls_.wait(seen, std::memory_order_acquire);
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

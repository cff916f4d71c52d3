#pragma once

// The threads that compute a stage's or an experts worker's ops. One owner calls ParallelFor; the
// tasks of one call may run in any order and on any thread, so each writes its own outputs only.
//
// A call costs about a microsecond while the threads still spin from the call before, a futex wake
// where they sleep. They spin only while that takes no core from anybody (see SpinBudget), until a
// while after the next call is expected, and a thread that comes late to a call takes no part in
// it: nobody waits for a thread to wake up.

#include <array>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <thread>
#include <vector>

#include "absl/functional/function_ref.h"

namespace packtrain {

struct ThreadPoolOptions {
  int num_threads = 0;  // including the caller; 0: one per hardware thread the process may use
  // How long an idle thread spins beyond the moment it expects a call, before it sleeps; -1:
  // SpinBudget.
  int spin_us = -1;
  // Thread i is bound to cpus[i % size], but thread 0, the caller, stays where it may run; empty:
  // none is bound.
  std::vector<int> cpus = {};
};

// When the next call is to be expected: calls come in a pattern (so many per layer, then the
// stage's turn), so the wait for the next is at most the longest of the last few.
class CallPredictor {
 public:
  // The time from the end of a call to the beginning of the next.
  void Observe(std::chrono::nanoseconds pause);
  std::chrono::nanoseconds longest_pause() const { return longest_; }

 private:
  static constexpr size_t kRemembered = 8;
  std::array<std::chrono::nanoseconds, kRemembered> pauses_{};
  size_t next_ = 0;
  std::chrono::nanoseconds longest_{0};
};

class ThreadPool {
 public:
  explicit ThreadPool(int num_threads)
      : ThreadPool(ThreadPoolOptions{.num_threads = num_threads}) {}
  explicit ThreadPool(ThreadPoolOptions options);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int num_threads() const { return static_cast<int>(threads_.size()) + 1; }
  // Whether idle threads spin for a while: else a call may have to wake them.
  bool spins() const { return spin_us_ > 0; }

  // Calls task(i, thread) for i in [0, count), thread in [0, num_threads()), lower i first; returns
  // when all are done. Not reentrant. REQUIRES: count <= kMaxTasks.
  void ParallelFor(int count, absl::FunctionRef<void(int, int)> task);
  static constexpr int kMaxTasks = 1 << 20;

 private:
  void RunThread(int thread);
  // Takes tasks until none is left; returns how many it ran.
  int RunTasks(int thread);
  // Returns when all tasks of the running call are done.
  void AwaitFinished(int count);
  // Returns when a call newer than `seen` has begun or the pool stops.
  void AwaitCall(uint32_t seen);

  // The running call in one word, so that a claim can never mix two calls: count (upper half) and
  // next task (lower half; overshoots count by at most one per thread).
  alignas(64) std::atomic<uint64_t> call_{0};
  alignas(64) std::atomic<int32_t> finished_{0};  // tasks of the running call
  alignas(64) std::atomic<uint32_t> calls_{0};    // what sleepers wait on
  std::atomic<bool> stop_{false};
  // Valid while a task of the running call is claimed and not finished.
  std::atomic<const absl::FunctionRef<void(int, int)>*> task_{nullptr};
  int spin_us_ = 0;
  CallPredictor predictor_;                           // the caller's, as the next
  std::chrono::steady_clock::time_point last_end_{};  // of a call
  std::atomic<int64_t> idle_spin_ns_{0};
  std::vector<std::thread> threads_;
};

}  // namespace packtrain

#pragma once

// The threads that compute a stage's or an experts worker's ops. One owner calls ParallelFor; the
// tasks of one call may run in any order and on any thread, so each writes its own outputs only.
//
// A call costs about a microsecond while the threads still spin from the call before, a futex wake
// where they sleep. They spin only while that takes no core from anybody (see SpinBudget), and a
// thread that comes late to a call takes no part in it: nobody waits for a thread to wake up.

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

#include "absl/functional/function_ref.h"

namespace packtrain {

struct ThreadPoolOptions {
  int num_threads = 0;  // including the caller; 0: one per hardware thread the process may use
  int spin_us = -1;     // how long an idle thread spins before it sleeps; -1: SpinBudget
  std::vector<int> cpus =
      {};  // thread i is bound to cpus[i % size]; the caller is thread 0; empty: none
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
  std::vector<std::thread> threads_;
};

}  // namespace packtrain

#pragma once

// The threads that compute a stage's or an experts worker's ops. One owner calls ParallelFor; the
// tasks of one call may run in any order and on any thread, so each writes its own outputs only.

#include <atomic>
#include <thread>
#include <vector>

#include "absl/functional/function_ref.h"
#include "common/base/mutex.h"

namespace packtrain {

class ThreadPool {
 public:
  // `num_threads` includes the caller; 0: one per hardware thread.
  explicit ThreadPool(int num_threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int num_threads() const { return static_cast<int>(threads_.size()) + 1; }

  // Calls task(i, thread) for i in [0, count), thread in [0, num_threads()); returns when all are
  // done. Not reentrant.
  void ParallelFor(int count, absl::FunctionRef<void(int, int)> task);

 private:
  void RunThread(int thread);
  void RunTasks(absl::FunctionRef<void(int, int)> task, int count, int thread);

  std::vector<std::thread> threads_;
  std::atomic<int> next_{0};
  Mutex mutex_;
  CondVar work_, done_;
  uint64_t round_ ABSL_GUARDED_BY(mutex_) = 0;
  int running_ ABSL_GUARDED_BY(mutex_) = 0;
  bool stop_ ABSL_GUARDED_BY(mutex_) = false;
  int count_ ABSL_GUARDED_BY(mutex_) = 0;
  const absl::FunctionRef<void(int, int)>* task_ ABSL_GUARDED_BY(mutex_) = nullptr;
};

}  // namespace packtrain
